"""The update of every objective: gradient, accumulation and optimizer in one pure function."""

from clu.metrics import Average
import jax
import jax.numpy as jnp
import optax

from vargrl.training import optim
from vargrl.types import Experience, State

PER_PROMPT = ('prompt', 'image', 'scale_dropout')  # fields of Experience that lead with P alone


def split(batch, n):
  """An Experience of P x R rows -> the same with a leading axis of n parts of equal size.

  Parts are strided over the prompts, so that each stays on the devices that its rows are on. Where
  there are fewer prompts than parts, the groups are cut too: no loss looks across rows.
  """
  lead = jax.tree.leaves(batch.data)[0] if batch.data is not None else batch.image[:, None]
  P, R = lead.shape[:2]
  if P % n == 0:
    return jax.tree.map(lambda x: x.reshape(P // n, n, *x.shape[1:]).swapaxes(0, 1), batch)
  cut = n // P
  rows = lambda x: x.reshape(P * cut, 1, R // cut, *x.shape[2:])
  once = lambda x: jnp.repeat(x, cut, 0)[:, None]
  return Experience(
    **{k: jax.tree.map(once if k in PER_PROMPT else rows, v) for k, v in vars(batch).items()}
  )


def check_split(P, R, n, whole=False):
  """whole: the rows of a prompt stay together."""
  if P % n and (whole or n % P or R % (n // P)):
    of = f'{P} pairs' if whole else f'{P} prompts x {R} rows'
    raise ValueError(f'minibatches x accum: {n} parts of {of}, expected a divisor')


def make_update(loss, optimizer, accum):
  """(state, frozen, batch) -> (state, metrics). Exact under accumulation: totals are summed first,
  the one division comes last. A non-finite gradient, or a batch without any verdict, leaves the
  state; such an update is `skipped` and says nothing else.

  optimizer: an optim.Optimizer. What it does not train has no gradient, is no part of its norm, and
  comes out as it went in. The metrics `grad_norm` and, where gradients are clipped by pattern,
  `grad_norm/i` of the i-th one, are of the gradients before they are clipped."""

  def total_loss(trained_params, frozen_params, frozen, batch):
    value, metrics = loss(optim.merge(trained_params, frozen_params), frozen, batch)
    return value.total, (value, metrics)

  def update(state, frozen, batch):
    trained = optimizer.trained or jax.tree.map(lambda _: True, state.params)
    params, frozen_params = optim.partition(state.params, trained)
    gradient = lambda part: jax.grad(total_loss, has_aux=True)(params, frozen_params, frozen, part)
    grads, (value, metrics) = accumulate(gradient, batch, accum)
    grads = jax.tree.map(lambda g: g / jnp.maximum(value.count, 1e-6), grads)
    norm = optax.tree.norm(grads)
    norms = {'grad_norm': norm}
    if optimizer.clip_groups is not None:
      by_group = optim.group_norms(grads, optimizer.clip_groups)
      norms |= {f'grad_norm/{i}': group_norm for i, group_norm in by_group.items()}
    good = jnp.isfinite(norm) & jnp.isfinite(value.total) & (value.count > 0)
    updates, opt = optimizer.tx.update(grads, state.opt, params)
    new = optax.apply_updates(params, updates), opt
    params, opt = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, (params, state.opt))
    ema = state.ema
    if ema is not None:
      new = average({'policy': params['policy']}, ema, optimizer.ema)
      ema = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, ema)
    one = jnp.ones(())
    metrics = metrics | {name: Average(total=x, count=one) for name, x in norms.items()}
    # An average of nothing has no value.
    metrics = jax.tree.map(lambda x: jnp.where(good, x, 0), metrics)
    metrics['skipped'] = Average(total=1.0 - good, count=one)
    return State(optim.merge(params, frozen_params), opt, ema), metrics

  return update


def accumulate(gradient, batch, accum):
  """What `gradient`, a function of a batch, gives for the `accum` parts of this one, summed."""
  if accum == 1:
    return gradient(batch)
  parts = split(batch, accum)
  # From zeros: from the first part's, the loss would be compiled twice.
  zeros = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
  return jax.lax.scan(lambda sums, part: (add(sums, gradient(part)), None), zeros, parts)[0]


def average(params, ema, decay):
  """The moving average `ema` of weights after one step more, float32: decay ema + (1 - decay)
  params."""
  return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32), ema, params)


def add(a, b):
  """The sum of two trees of arrays and Averages."""
  return jax.tree.map(
    lambda x, y: x.merge(y) if isinstance(x, Average) else x + y,
    a,
    b,
    is_leaf=lambda x: isinstance(x, Average),
  )
