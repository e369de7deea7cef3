"""Words and pictures in turn: cached is teacher forcing, alone and packed with others; rows end by
themselves.
"""

import dataclasses
from functools import partial

import conftest
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import infinity, qwen2, unified, vit
from vargrl.parallel import hlo, mesh, rules
from vargrl.rollout import interleaved, packed
from vargrl.rollout import parts as pieces
from vargrl.tokenizers import bsq

SCALES, START, END, PAD, STOP = (1, 2), 6, 7, 8, 2
# Of few words, so that some rows draw and some do not.
CONFIG = unified.Config(
  qwen2.Config(2, 32, 4, 2, 48, 12, theta=1e4, sections=(2, 1, 1)),
  vit.Config(1, 32, 2, 32, patch=2, frames=1),
  dataclasses.replace(infinity.SIZES['smoke'], scales=SCALES),
  special=(START, END, PAD),
)
SMOKE = conftest.build(CONFIG, dataclasses.replace(bsq.SIZES['smoke-square'], scales=SCALES))
SAMPLER = interleaved.Config(
  words=(4, 3, 3),
  temperature=0.9,
  top_k=0,
  top_p=0.97,
  stop=(STOP,),
  guidance=2.0,
  bit_temperature=(0.8, 1.1),
  bit_top_p=0.9,
  nothing=(1, 3, START),
  released=False,
)
LENGTH, KEY = 5, 35  # tokens of a picture; with this key some rows draw one, some two, most none


def prompts(S=9, T=12):
  """Two of 7 and 4 words; the first shows a picture of 2 x 4 patches, two embeddings."""
  tokens, place = np.zeros((2, S), int), np.full((2, S), -1)
  tokens[0, :7], tokens[1, :4], place[0, 2:4] = [1, 3, 5, 5, 4, 9, 1], [1, 10, 11, 1], [0, 1]
  position = np.zeros((2, 3, S), int)
  position[0, :, :7] = [[0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
  position[1, :, :4] = np.arange(4)
  at, segment = np.zeros((2, 2, T), int), np.zeros((2, T), int)
  at[0, :, :8], segment[0, :8] = [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]], 1
  found = dict(
    tokens=tokens,
    length=[7, 4],
    position=position,
    place=place,
    patch_position=at,
    patch_segment=segment,
  )
  return {k: jnp.asarray(x, jnp.int32) for k, x in found.items()} | {
    'patches': jax.random.normal(jax.random.key(3), (2, T, 12))
  }


def generate(c=SAMPLER, prompt_P=None, keys_PR=None, params=SMOKE.params):
  keys_PR = interleaved.keys(jax.random.key(KEY), 2, 6) if keys_PR is None else keys_PR
  return jax.jit(partial(interleaved.generate, SMOKE.model, SMOKE.vae, c))(
    params, SMOKE.vq_params, prompts() if prompt_P is None else prompt_P, keys_PR
  )


@pytest.fixture(scope='module')
def scores_of():
  run = jax.jit(partial(interleaved.logprobs, SMOKE.model, SMOKE.vae, SAMPLER))

  def call(tokens, prompt_P=None, params=SMOKE.params, **options):
    return run(
      params, SMOKE.vq_params, prompts() if prompt_P is None else prompt_P, tokens, **options
    )

  return call


@pytest.fixture(scope='module')
def drawn():
  return generate()


def rows(out):
  """(words [W], bits [I, L, e], logp [L], mask [L]) of each row as numpy."""
  flat = lambda x: np.asarray(x).reshape(12, *x.shape[2:])
  bits = flat(out.tokens['bits']).reshape(12, 2, LENGTH, -1)
  return zip(flat(out.tokens['words']), bits, flat(out.logp), flat(out.mask))


def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(drawn, scores_of):
  scores = scores_of(drawn.tokens, reference=SMOKE.params)
  assert drawn.tokens['words'].shape == (2, 6, 10) and drawn.tokens['bits'].shape == (2, 6, 10, 4)
  assert drawn.logp.shape == scores.logp.shape == (2, 6, 20)
  np.testing.assert_allclose(drawn.logp, drawn.mask * scores.logp, atol=2e-5)
  np.testing.assert_allclose(scores.reference, scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.kl, 0, atol=1e-5)
  pictures = np.array([[m[4], m[12]] for *_, m in rows(drawn)])
  assert 0 < pictures[:, 1].sum() < pictures[:, 0].sum() < 12


def test_a_row_ends_where_its_words_do_not_begin_a_picture(drawn):
  for words, bits, logp, mask in rows(drawn):
    alive, at, place = True, 0, 0
    for i, length in enumerate(SAMPLER.words):
      said, there = words[at : at + length], mask[place : place + length]
      ends = np.flatnonzero(np.isin(said, (START, STOP)) & (there > 0))
      count = (ends[0] + 1 if len(ends) else length) * alive
      np.testing.assert_array_equal(there, np.arange(length) < count)
      assert not said[count:].any() and not logp[place : place + length][count:].any()
      alive = alive and len(ends) > 0 and said[ends[0]] == START
      at, place = at + length, place + length
      if i == 2:
        break
      assert (mask[place : place + LENGTH] == alive).all() and (alive or not bits[i].any())
      place += LENGTH


def test_a_row_depends_on_its_own_prompt_and_key_alone_and_not_on_its_padding(drawn):
  keys_PR = interleaved.keys(jax.random.key(KEY), 2, 6)
  one = generate(
    prompt_P=jax.tree.map(lambda x: x[1:], prompts(S=11, T=16)), keys_PR=keys_PR[1:, 2:3]
  )
  for name in ('words', 'bits'):
    np.testing.assert_array_equal(one.tokens[name][0, 0], drawn.tokens[name][1, 2])
  assert len(np.unique(np.asarray(drawn.tokens['bits']).reshape(12, -1), axis=0)) > 4


def sequence(prompt, words, bits):
  """A row of the rollout as a dialogue of data/dialogue/pack.py: {'tokens', 'position', 'image_index',
  'loss_mask', 'image_start', 'context'}, its bits [I, L, e], and where its words and pictures are in the
  rollout's logp."""
  n = int(prompt['length'])
  tokens, slot, memory, said, at, place = [*np.asarray(prompt['tokens'][:n])], [], [], [], 0, 0
  where = []
  for i, length in enumerate(SAMPLER.words):
    for j, t in enumerate(words[at : at + length]):
      said.append((len(tokens), place + j))
      tokens.append(t)
      if t in (START, STOP):
        break
    at, place = at + length, place + length
    if tokens[-1] != START or i == 2:
      break
    memory.append([k for k, t in enumerate(tokens[:-1]) if t != PAD])
    slot.append(len(tokens))
    where.append(place)
    tokens += [PAD] * LENGTH + [END] * (i < 2)
    place += LENGTH
  after = np.asarray(prompt['position'][:, :n]).max() + 1 + np.arange(len(tokens) - n)
  position = np.concatenate([np.asarray(prompt['position'][:, :n]), np.tile(after, (3, 1))], 1)
  return (
    dict(
      tokens=tokens,
      position=position,
      image_index=np.pad(np.asarray(prompt['image_index'][:n]), (0, len(tokens) - n), constant_values=-1),
      image_start=slot,
      context=memory,
    ),
    bits[: len(slot)],
    said,
    where,
  )


def test_packed_rows_have_the_log_probabilities_of_rollouts(drawn):
  """Two dialogues of different prompts in one row, with what each of them sees; the second has
  pictures of its own.
  """
  table, row, at, patch, expected = list(rows(drawn)), {}, 0, 0, []
  S, I, M = 64, 4, 24
  row = {
    'tokens': np.zeros(S, int),
    'position': np.zeros((3, S), int),
    'segment': np.zeros(S, int),
    'image_index': np.full(S, -1),
    'image_start': np.full(I, -1),
    'context': np.full((I, M), -1),
    'patches': np.zeros((24, 12), np.float32),
    'patch_position': np.zeros((2, 24), int),
    'patch_segment': np.zeros(24, int),
  }
  t_ILe, count = np.zeros((I, LENGTH, 4), int), 0
  two = lambda half: max(
    range(half, half + 6), key=lambda i: table[i][3].sum()
  )  # the longest of a prompt
  for number, i in enumerate((two(6), two(0))):
    prompt, (words, bits, logp, _) = jax.tree.map(lambda x: x[i // 6], prompts()), table[i]
    told, bits, said, where = sequence(prompt, words, bits)
    n, here = len(told['tokens']), slice(at, at + len(told['tokens']))
    row['tokens'][here], row['position'][:, here], row['segment'][here] = (
      told['tokens'],
      told['position'],
      number + 1,
    )
    row['image_index'][here] = np.where(told['image_index'] < 0, -1, told['image_index'] + patch // 4)
    there = slice(patch, patch + 8)
    row['patches'][there], row['patch_segment'][there] = (
      prompt['patches'][:8],
      prompt['patch_segment'][:8] * (number + 1),
    )
    row['patch_position'][:, there] = prompt['patch_position'][:, :8]
    expected += [('words', at + place, logp[j]) for place, j in said]
    for slot, memory, t_Le, j in zip(told['image_start'], told['context'], bits, where):
      row['image_start'][count], row['context'][count, : len(memory)], t_ILe[count] = (
        slot + at,
        np.add(memory, at),
        t_Le,
      )
      expected.append(('bits', count, (i, j)))
      count += 1
    at, patch = at + n, patch + 8
  assert count > 1
  row = {
    k: jnp.asarray(x[None]) if k == 'patches' else jnp.asarray(x[None], jnp.int32)
    for k, x in row.items()
  }
  # At the temperatures that were drawn with, which packed rows do not know.
  hot = {'lm': lambda p: p | {'head': {'w': p['head']['w'] / SAMPLER.temperature}}}
  params = SMOKE.params | {'lm': hot['lm'](SMOKE.params['lm'])}
  words, drawn_bits = jax.jit(partial(packed.logprobs, SMOKE.model, SMOKE.vae))(
    params, SMOKE.vq_params, row, jnp.asarray(t_ILe[None]), jnp.asarray(t_ILe[None])
  )
  plain = dataclasses.replace(SAMPLER, bit_temperature=1.0)
  exact = jax.jit(partial(interleaved.logprobs, SMOKE.model, SMOKE.vae, plain))(
    SMOKE.params, SMOKE.vq_params, prompts(), drawn.tokens
  ).logp
  exact = np.asarray(exact).reshape(12, -1)
  for kind, place, what in expected:
    if kind == 'words':
      np.testing.assert_allclose(words.logp[0, place], what, atol=2e-5)
    else:
      np.testing.assert_allclose(
        drawn_bits.logp[0, place], exact[what[0], what[1] : what[1] + LENGTH], atol=2e-5
      )


def test_reading_does_not_know_of_drawing():
  """What answers words has no gradient in the decoder, and the same words whatever its weights
  are.
  """
  c = dataclasses.replace(SAMPLER, words=(6,))
  out = generate(c)
  other = SMOKE.params | {
    'drawer': jax.tree.map(lambda x: x + 1, SMOKE.params['drawer']),
    'start': -SMOKE.params['start'],
  }
  np.testing.assert_array_equal(generate(c, params=other).tokens['words'], out.tokens['words'])
  loss = lambda params: interleaved.logprobs(
    SMOKE.model, SMOKE.vae, c, params, SMOKE.vq_params, prompts(), out.tokens
  ).logp.sum()
  grads = jax.jit(jax.grad(loss))(SMOKE.params)
  moved = {
    name: max(float(abs(x).max()) for x in jax.tree.leaves(part)) for name, part in grads.items()
  }
  assert moved['lm'] > 0 and moved['vision'] > 0
  assert all(moved[name] == 0 for name in ('drawer', 'into', 'out', 'start'))


def test_a_prompt_is_read_once_for_its_group():
  """FLOPs that further rollouts add do not know how long the prompt is."""

  def flops(R, S):
    prompt_P = jax.tree.map(lambda x: x[:1], prompts(S=S))
    keys_PR = interleaved.keys(jax.random.key(KEY), 1, R)
    c = dataclasses.replace(SAMPLER, words=(0, 0), nothing=(1, 3, 1, 1, 3, START))
    run = jax.jit(partial(interleaved.generate, SMOKE.model, SMOKE.vae, c))
    return run.lower(SMOKE.params, SMOKE.vq_params, prompt_P, keys_PR).cost_analysis()['flops']

  def reading(S):
    read = lambda params, prompt: pieces.read(pieces.parted(SMOKE.model, params), prompt)
    return (
      jax.jit(read)
      .lower(SMOKE.params, jax.tree.map(lambda x: x[0], prompts(S=S)))
      .cost_analysis()['flops']
    )

  once = reading(41) - reading(9)
  # To attend to a longer prompt costs each row a little, to read it would cost five times as much.
  assert once < flops(5, 41) - flops(5, 9) < 2 * once, 'each row reads the prompt again'


@pytest.mark.parametrize('axes', [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_rows_on_a_mesh_are_rows_on_one_device(axes, drawn):
  where = mesh.make(list(zip(mesh.AXES, axes)))
  params = jax.device_put(SMOKE.params, rules.weight_shardings(SMOKE.boxed, where))
  eight = jax.tree.map(lambda x: jnp.concatenate([x] * 4), prompts())
  keys_PR = jnp.concatenate([interleaved.keys(jax.random.key(KEY), 2, 6)] * 4)[:, :2]
  with jax.set_mesh(where):
    spread = NamedSharding(where, PartitionSpec(rules.ROW_AXES))
    out = generate(
      prompt_P=jax.device_put(eight, spread), keys_PR=jax.device_put(keys_PR, spread), params=params
    )
  for name in ('words', 'bits'):
    np.testing.assert_array_equal(
      np.asarray(out.tokens[name])[:2], np.asarray(drawn.tokens[name])[:, :2]
    )


def packed_rows(S, I=1, rows=8):
  """Rows of random words and a picture each, without pictures that are read."""
  keys = jax.random.split(jax.random.key(5), 2)
  row = {
    'tokens': jax.random.randint(keys[0], (rows, S), 0, 12),
    'segment': jnp.ones((rows, S), jnp.int32),
    'position': jnp.tile(jnp.arange(S), (rows, 3, 1)),
    'image_index': jnp.full((rows, S), -1),
    'image_start': jnp.full((rows, I), 6),
    'context': jnp.tile(jnp.arange(4), (rows, I, 1)),
    'patches': jnp.zeros((rows, 0, 12)),
    'patch_position': jnp.zeros((rows, 2, 0), jnp.int32),
    'patch_segment': jnp.zeros((rows, 0), jnp.int32),
  }
  return row, jax.random.randint(keys[1], (rows, I, LENGTH, 4), 0, 2)


def test_packed_rows_on_a_mesh_are_those_on_one_device_and_do_not_travel():
  where = mesh.make(list(zip(mesh.AXES, (1, 8, 1))))
  params = jax.device_put(SMOKE.params, rules.weight_shardings(SMOKE.boxed, where))
  spread = NamedSharding(where, PartitionSpec(rules.ROW_AXES))

  # Where attention is a kernel, each device has its own rows' alone, or all of them.
  model = unified.Model(dataclasses.replace(CONFIG, attention='splash'))

  def run(params, vq_params, row, t_BILe):
    words, bits = packed.logprobs(model, SMOKE.vae, params, vq_params, row, t_BILe, t_BILe)
    return words.logp, bits.logp

  found, sent = {}, []
  with jax.set_mesh(where):
    for S in (16, 64):
      program = (
        jax.jit(run)
        .lower(params, SMOKE.vq_params, *jax.device_put(packed_rows(S), spread))
        .compile()
      )
      found[S] = program(params, SMOKE.vq_params, *jax.device_put(packed_rows(S), spread))
      sent.append(hlo.collectives(hlo.parse(program.as_text())))
  for ours, alone in zip(
    found[16], jax.jit(run)(SMOKE.params, SMOKE.vq_params, *packed_rows(16)), strict=True
  ):
    np.testing.assert_allclose(ours, alone, atol=2e-5)
  assert 'all-gather' in sent[0] and sent[0] == sent[1], 'what travels knows how long the rows are'


def test_what_cannot_be_drawn_is_told():
  for changes, words in (
    (dict(words=()), 'how many before each picture'),
    (dict(words=(0,)), 'how many before'),
    (dict(words=(4, 0, 3)), '0 at most at the beginning'),
    (dict(nothing=()), 'asks for nothing'),
    (dict(temperature=0.0), 'temperature'),
    (dict(words=(0, 5), temperature=0.0), 'temperature'),
    (dict(weights='some'), 'weights'),
  ):
    with pytest.raises(ValueError, match=words):
      dataclasses.replace(SAMPLER, **changes)
  for changes, words in (
    (dict(stop=(99,)), r'rollout.stop: token 99 found, 0 .. 11 expected'),
    (dict(nothing=(1, 3)), 'ends with token 3, expected 6'),
    (dict(stop=(7,)), 'others than'),
  ):
    with pytest.raises(ValueError, match=words):
      interleaved.check_model(dataclasses.replace(SAMPLER, **changes), CONFIG)
  released = dataclasses.replace(SAMPLER, words=(0, 0), released=True)
  with pytest.raises(
    ValueError, match='9 tokens of a prompt .* and of words before a picture found, at most 8'
  ):
    jax.eval_shape(
      partial(interleaved.generate, SMOKE.model, SMOKE.vae, released),
      SMOKE.params,
      SMOKE.vq_params,
      prompts(),
      interleaved.keys(jax.random.key(KEY), 2, 1),
    )
