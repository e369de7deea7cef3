"""Rows that hold several dialogues: scored as if each were alone, on one device and many."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import small_unified as small
from small_unified import END, LENGTH, PAD, START, STOP

from vargrl.models import qwen2, unified
from vargrl.models.nets import language
from vargrl.parallel import hlo, mesh, rules
from vargrl.rollout import score

S, I, M, T = 64, 4, 24, 24  # places, pictures, their context, patches of a packed row


def dialogue(prompt, texts, pictures):
  """A row of a rollout as a dialogue of data/dialogue/pack.py: (its fields, its pictures' tokens,
  where its words are in it and among the row's actions, where its pictures are among these)."""
  n = int(prompt['length'])
  tokens, starts, context, words, places, at = (
    [*np.asarray(prompt['tokens'][:n])],
    [],
    [],
    [],
    [],
    0,
  )
  for i, text in enumerate(texts):
    for j, t in enumerate(text):
      words.append((len(tokens), at + j))
      tokens.append(t)
      if t in (START, STOP):
        break
    at += len(text)
    if tokens[-1] != START or i == 2:
      break
    context.append([k for k, t in enumerate(tokens[:-1]) if t != PAD])
    starts.append(len(tokens))
    places.append(at)
    tokens += [PAD] * LENGTH + [END] * (i < 2)
    at += LENGTH
  more = len(tokens) - n
  position = np.asarray(prompt['position'][:, :n])
  after = np.tile(position.max() + 1 + np.arange(more), (3, 1))
  image_index = np.pad(np.asarray(prompt['image_index'][:n]), (0, more), constant_values=-1)
  fields = dict(
    tokens=tokens,
    position=np.concatenate([position, after], 1),
    image_index=image_index,
    image_start=starts,
    context=context,
  )
  return fields, pictures[: len(starts)], words, places


def empty():
  """A packed row with nothing in it."""
  minus, zeros = lambda *shape: np.full(shape, -1), lambda *shape: np.zeros(shape, int)
  return {
    'tokens': zeros(S),
    'position': zeros(3, S),
    'segment': zeros(S),
    'image_index': minus(S),
    'image_start': minus(I),
    'context': minus(I, M),
    'patches': np.zeros((T, 12), np.float32),
    'patch_position': zeros(2, T),
    'patch_segment': zeros(T),
  }


def write(row, number, prompt, fields, at, patch, count):
  """Dialogue `number` of a row, from place `at`, patch `patch` and picture `count` on."""
  here = slice(at, at + len(fields['tokens']))
  row['tokens'][here], row['position'][:, here] = fields['tokens'], fields['position']
  row['segment'][here] = number
  index = fields['image_index']
  row['image_index'][here] = np.where(index < 0, -1, index + patch // 4)
  there = slice(patch, patch + 8)
  row['patches'][there] = prompt['patches'][:8]
  row['patch_segment'][there] = prompt['patch_segment'][:8] * number
  row['patch_position'][:, there] = prompt['patch_position'][:, :8]
  for i, (start, context) in enumerate(zip(fields['image_start'], fields['context']), count):
    row['image_start'][i] = start + at
    row['context'][i, : len(context)] = np.add(context, at)


def test_packed_rows_have_the_log_probabilities_of_rollouts():
  """Two dialogues of different prompts in one row, with what each of them sees; the second has
  pictures of its own.
  """
  drawn = jax.tree.map(lambda x: np.asarray(x).reshape(12, *x.shape[2:]), small.sample())
  # The longest of each prompt.
  longest = [max(range(a, a + 6), key=lambda i: drawn.mask[i].sum()) for a in (6, 0)]
  row, at, patch, count = empty(), 0, 0, 0
  t_ILe, expected = np.zeros((I, LENGTH, 4), int), []
  for number, i in enumerate(longest, 1):
    prompt = jax.tree.map(lambda x: x[i // 6], small.prompts())
    of = lambda names: [drawn.data[name]['tokens'][i] for name in names]
    fields, pictures, words, places = dialogue(prompt, of(small.TEXTS), of(small.IMAGES))
    write(row, number, prompt, fields, at, patch, count)
    expected += [(at + place, drawn.logp[i, action]) for place, action in words]
    for t_Le, action in zip(pictures, places):
      t_ILe[count] = t_Le
      start = S + count * LENGTH
      expected += [(start + j, drawn.logp[i, action + j]) for j in range(LENGTH)]
      count += 1
    at, patch = at + len(fields['tokens']), patch + 8
  assert count > 1
  as_type = lambda x: jnp.asarray(x[None], x.dtype if x.dtype == np.float32 else jnp.int32)
  row_P = jax.tree.map(as_type, row)
  run = jax.jit(lambda *args: small.scores(*args, plan=small.packed_plan(S, I)))
  data = small.packed_data(row_P, jnp.asarray(t_ILe[None]))
  logp = np.asarray(run(small.SMOKE.params, row_P, data).logp)[0, 0]
  assert logp.shape == (S + I * LENGTH,)
  places, theirs = zip(*expected)
  np.testing.assert_allclose(logp[[*places]], theirs, atol=2e-5)


def random_rows(S, rows=8):
  """(rows of random words and a picture each, without pictures that are read, tokens t_PILe)."""
  keys = jax.random.split(jax.random.key(5), 2)
  row = {
    'tokens': jax.random.randint(keys[0], (rows, S), 0, 12),
    'segment': jnp.ones((rows, S), jnp.int32),
    'position': jnp.tile(jnp.arange(S), (rows, 3, 1)),
    'image_index': jnp.full((rows, S), -1),
    'image_start': jnp.full((rows, 1), 6),
    'context': jnp.tile(jnp.arange(4), (rows, 1, 1)),
    'patches': jnp.zeros((rows, 0, 12)),
    'patch_position': jnp.zeros((rows, 2, 0), jnp.int32),
    'patch_segment': jnp.zeros((rows, 0), jnp.int32),
  }
  return row, jax.random.randint(keys[1], (rows, 1, LENGTH, 4), 0, 2)


def test_packed_rows_on_a_mesh_are_those_on_one_device_and_do_not_travel():
  SMOKE, where = small.SMOKE, mesh.make(list(zip(mesh.AXES, (1, 8, 1))))
  params = jax.device_put(SMOKE.params, rules.weight_shardings(SMOKE.boxed, where))
  spread = NamedSharding(where, PartitionSpec(rules.ROW_AXES))
  # Where attention is a kernel, each device has its own rows' alone, or all of them.
  model = unified.Model(dataclasses.replace(small.CONFIG, attention='splash'))

  @jax.jit
  def run(params, row_P, t_PILe):
    plan = small.packed_plan(row_P['tokens'].shape[1], 1)
    data = small.packed_data(row_P, t_PILe)
    return small.scores(params, row_P, data, plan=plan, model=model).logp

  found, sent = {}, []
  with jax.set_mesh(where):
    for S in (16, 64):
      rows = jax.device_put(random_rows(S), spread)
      program = run.lower(params, *rows).compile()
      found[S] = program(params, *rows)
      sent.append(hlo.collectives(hlo.parse(program.as_text())))
  alone = run(SMOKE.params, *random_rows(16))
  np.testing.assert_allclose(found[16], alone, atol=2e-5)
  assert 'all-gather' in sent[0] and sent[0] == sent[1], 'what travels knows how long the rows are'


def test_rows_of_text_alone_are_scored_without_a_decoder():
  """Of a batch without pictures to draw, and of a language model that knows none."""
  row_P, _ = random_rows(16, rows=2)
  row_P |= {
    'image_start': jnp.zeros((2, 0), jnp.int32),
    'context': jnp.zeros((2, 0, 4), jnp.int32),
  }
  plan = small.packed_plan(16, 1)[:1]
  data = {'text': {'tokens': row_P['tokens'][:, None]}}
  loss = lambda p, row_P: small.scores(p, row_P, data, plan=plan).logp[..., 1:].sum()
  value, grads = jax.jit(jax.value_and_grad(loss))(small.SMOKE.params, row_P)
  assert all(not x.any() for x in jax.tree.leaves(grads['drawer']))
  alone = language.Net(qwen2.Model(small.CONFIG.lm), None, small.SMOKE.params['lm'], None)
  theirs = jax.jit(lambda row_P: score.score([alone], plan, row_P, data)[0].logp)(row_P)
  np.testing.assert_allclose(value, theirs[..., 1:].sum(), rtol=1e-5)
