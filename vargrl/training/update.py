"""The update of every objective: gradient, accumulation and optimizer in one pure function."""

from clu.metrics import Average
import jax
import jax.numpy as jnp
import optax

from vargrl.training import optim
from vargrl.types import Experience, State

ONE_ROW = ('label', 'image')  # fields of Experience that lead with P alone


def split(batch, n):
  """An Experience of P x R rows -> the same with a leading axis of n parts of equal size.

  Parts are strided over the prompts, so that each stays on the devices that its rows are on. Where
  there are fewer prompts than parts, the groups are cut too: no loss looks across rows.
  """
  lead = jax.tree.leaves(batch.tokens)[0] if batch.tokens is not None else batch.image[:, None]
  P, R = lead.shape[:2]
  if P % n == 0:
    return jax.tree.map(lambda x: x.reshape(P // n, n, *x.shape[1:]).swapaxes(0, 1), batch)
  cut = n // P
  rows = lambda x: x.reshape(P * cut, 1, R // cut, *x.shape[2:])
  once = lambda x: jnp.repeat(x, cut, 0)[:, None]
  return Experience(
    **{k: jax.tree.map(once if k in ONE_ROW else rows, v) for k, v in vars(batch).items()}
  )


def check_split(P, R, n, whole=False):
  """whole: the rows of a prompt stay together."""
  if P % n and (whole or n % P or R % (n // P)):
    of = f'{P} pairs' if whole else f'{P} prompts x {R} rows'
    raise ValueError(f'minibatches x accum: {n} parts of {of}, expected a divisor')


def make_update(loss, tx, accum, trained=None):
  """(state, frozen, batch) -> (state, metrics). Exact under accumulation: totals are summed first,
  the one division comes last. A non-finite gradient, or a batch without any verdict, leaves the
  state; such an update is `skipped` and says nothing else.

  trained: tree of bools like the parameters, all if None. The others have no gradient, are no part
  of its norm, and come out as they went in; tx sees what optim.part leaves of the parameters."""

  def total(learned, still, frozen, batch):
    value, metrics = loss(optim.join(learned, still), frozen, batch)
    return value.total, (value, metrics)

  def update(state, frozen, batch):
    mask = trained or jax.tree.map(lambda _: True, state.params)
    learned, still = optim.part(state.params, mask)
    one = lambda part: jax.grad(total, has_aux=True)(learned, still, frozen, part)
    if accum == 1:
      grads, (value, metrics) = one(batch)
    else:
      parts = split(batch, accum)
      # From zeros: from the first part's, the loss would be compiled twice.
      zeros = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
      grads, (value, metrics) = jax.lax.scan(
        lambda c, part: (add(c, one(part)), None), zeros, parts
      )[0]
    grads = jax.tree.map(lambda g: g / jnp.maximum(value.count, 1e-6), grads)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(value.total) & (value.count > 0)
    updates, opt = tx.update(grads, state.opt, learned)
    new, old = (optax.apply_updates(learned, updates), opt), (learned, state.opt)
    learned, opt = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    ones = jnp.ones(())
    metrics = metrics | {'grad_norm': Average(total=norm, count=ones)}
    metrics = jax.tree.map(
      lambda x: jnp.where(good, x, 0), metrics
    )  # an average of nothing has no value
    return State(optim.join(learned, still), opt), metrics | {
      'skipped': Average(total=1.0 - good, count=ones)
    }

  return update


def add(a, b):
  return jax.tree.map(
    lambda x, y: x.merge(y) if isinstance(x, Average) else x + y,
    a,
    b,
    is_leaf=lambda x: isinstance(x, Average),
  )
