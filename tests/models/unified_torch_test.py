"""The unified model against numbers of the official VARGPT-v1.1 (tests/golden), and its checkpoint
layout.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vargpt_rule as golden

from vargrl.checkpoint import files, torch_format
from vargrl.models import infinity, qwen2, unified
from vargrl.models.nets import unified as nets
from vargrl.objectives import dpo
from vargrl.rollout import generate, plan, score, vmaps
from vargrl.rollout.kinds import bits as bits_kind
from vargrl.types import Experience, Policy, Scores, bounds

LENGTH, PATCHES = 680, 24  # of all rows: one program is compiled
PADDED = unified.Model(golden.config(image_pad_to=128))
# As the released code draws; of text, none: the prompt has it already.
SETTINGS = nets.Settings(uncond_prompt=(), reference_impl=True)
DRAWN = bits_kind.Config(
  guidance=3.0, temperature=0.5, top_p=0.97, logp_of='cond', scales=PADDED.c.scales, bits=32
)


def drawing(**changes):
  """The plan of one picture."""
  return (plan.Segment('image', bits_kind, dataclasses.replace(DRAWN, **changes)),)


def net(m, params, codes=()):
  return nets.Net(m.model, m.tokenizer, params, dict(codes), SETTINGS)


@functools.cache
def teacher_forced():
  """(params, rows of two, flips, labels, dropped) -> (h_BSD, bit logits, text logits, noisy
  inputs).
  """
  tokenizer = golden.load().tokenizer

  @jax.jit
  def run(params, row, flips_BLe, labels_BLe, dropped_BI):
    inputs_BLC = tokenizer.apply({'params': {}}, labels_BLe ^ flips_BLe, method='embed')
    call = lambda *args, method: PADDED.apply({'params': params}, *args, method=method)
    h_BSD = call(row, inputs_BLC[:, None], dropped_BI, method='forward')
    x_BLD, head = call(row, h_BSD, dropped_BI, method='decode')
    logits = infinity.Model(PADDED.c.decoder).apply(
      {'params': params['drawer']}, x_BLD, head, method='logits'
    )
    words = qwen2.Model(PADDED.c.lm).apply({'params': params['lm']}, h_BSD, method='logits')
    return h_BSD, logits.reshape(*logits.shape[:2], 64), words, inputs_BLC

  return run


def run_part(name, params=None, dropped=False):
  """(what `teacher_forced` makes of a stored part, the part, its bits); a part of one row is there
  twice.
  """
  part = golden.part(name)
  ids, grid = part['input_ids'], part.get('image_grid_thw')
  B = len(ids)
  rows = [
    golden.row(x, LENGTH, PATCHES, grid, 'dev/edit') for x in (ids if B == 2 else [*ids, *ids])
  ]
  two = lambda x: x if B == 2 else np.concatenate([x, x])
  labels, flips = (
    two(f(part[key], B))
    for f, key in ((golden.bits, 'labels_packed'), (golden.flips, 'flip_masks_packed'))
  )
  found = teacher_forced()(
    params or golden.load().params,
    jax.tree.map(lambda *x: jnp.stack(x), *rows),
    flips,
    labels,
    jnp.array([[False], [dropped]]),
  )
  return found, part, labels


def entropy(words, ids):
  """The released loss of words: over the whole sequence, places of pictures left out."""
  logp = jax.nn.log_softmax(words[:, : ids.shape[1] - 1].astype(jnp.float32))
  nll, counted = (
    -np.take_along_axis(np.asarray(logp), ids[:, 1:, None], -1)[..., 0],
    ids[:, 1:] != golden.PAD,
  )
  return nll[counted].astype(np.float64).mean()


def check(part, words, bits, labels):
  B = len(part['input_ids'])
  np.testing.assert_allclose(bits[:B, ::8], part['bit_logits'], atol=1e-4)
  assert abs(np.asarray(bits[:B, ::8]) - part['bit_logits']).mean() < 5e-6
  rows = np.take_along_axis(np.asarray(words[:B]), part['text_rows'][..., None], 1)
  np.testing.assert_allclose(rows, part['text_logits'], atol=1e-4)
  assert abs(entropy(words[:B], part['input_ids']) - part['loss_text']) < 2e-5
  logp = jax.nn.log_softmax(bits[:B].reshape(B, 521, 32, 2))
  assert (
    abs(-np.take_along_axis(np.asarray(logp), labels[:B, ..., None], -1).mean() - part['loss_bits'])
    < 2e-5
  )


def test_drawing_from_words_is_the_official_one():
  (h_BSD, bits, words, inputs), part, labels = run_part('t2i_train')
  check(part, words, bits, labels)
  np.testing.assert_allclose(inputs[:, part['noisy_rows'] - 1], part['noisy_inputs'], atol=1e-5)
  m = golden.load()
  memory = unified.Model(m.c).apply({'params': m.params}, h_BSD, method='to_decoder')
  ends = (part['input_ids'] == golden.START).argmax(1)
  memory = np.concatenate([x[:n] for x, n in zip(memory, ends, strict=True)])
  np.testing.assert_allclose(memory, part['memory'], atol=2e-4)
  found = m.tokenizer.apply(
    {'params': {}},
    part['vae_features'].transpose(0, 2, 3, 1),
    golden.flips(part['flip_masks_packed'], 2),
    method='quantize',
  )[0]
  np.testing.assert_array_equal(found, labels)


def test_a_dropped_condition_is_the_official_one():
  (_, bits, _, _), part, _ = run_part('t2i_train', dropped=True)
  np.testing.assert_allclose(bits[1, part['rows_extra']], part['bit_logits_lastdropped'], atol=1e-4)


def test_editing_is_the_official_one():
  (_, bits, words, _), part, labels = run_part('edit_train')
  check(part, words, bits, labels)


def test_preferences_are_the_official_ones():
  part, logp = golden.part('dpo'), {}
  for who, params in (('policy', None), ('reference', golden.load(golden.reference).params)):
    (_, bits, _, _), _, labels = run_part('dpo', params)
    found = jax.nn.log_softmax(bits.reshape(2, 521, 32, 2))
    logp[who] = (
      np.take_along_axis(np.asarray(found), labels[..., None], -1)[..., 0]
      .astype(np.float64)
      .sum(-1)
    )
    np.testing.assert_allclose(-logp[who], part[f'{who}_ce_sum_per_token'], atol=5e-3)
    np.testing.assert_allclose(logp[who].sum(-1), part[f'{who}_logps_f64'], atol=0.02)
  both = jnp.asarray(logp['policy'][None], jnp.float32)
  scores = Scores(both, entropy=jnp.zeros_like(both), accuracy=jnp.zeros_like(both))
  nothing = {field.name: None for field in dataclasses.fields(Policy)}
  of_pair = lambda params, frozen, prompt, data, reference=None: scores
  policy = Policy(**nothing | {'spans': plan.spans(drawing()), 'score': of_pair})
  value, _ = dpo.loss(
    policy,
    {'policy': None},
    {},
    Experience(ref_logp=jnp.asarray(logp['reference'][None], jnp.float32)),
    kind='sigmoid',
    beta=0.1,
    smoothing=0.0,
    scale_weight_power=0.0,
    segments=(('.*', {}),),
  )
  assert abs(float(value.total / value.count) - part['loss']) < 2e-3


def test_reading_is_the_official_one():
  part, m = golden.part('understanding'), golden.load()
  ids = part['input_ids'].astype(np.int32)
  prompt = golden.seen(ids, part['image_grid_thw'], 'dev/und') | {
    'tokens': ids,
    'length': np.int32(len(ids)),
  }
  np.testing.assert_array_equal(prompt['position'], part['position_ids'])

  @jax.jit
  def run(params, prompt):
    one = net(m, params)
    (memory,) = one.prefill(prompt).memory
    return one.embed_prompt(prompt), one.lm('logits', memory.h_1SD)

  x_1SD, logits = run(m.params, jax.tree.map(jnp.asarray, prompt))
  np.testing.assert_allclose(x_1SD[0, ids == golden.SEEN], part['vit_out'], atol=1e-4)
  np.testing.assert_allclose(logits[0], part['logits'], atol=1e-4)


def sampling_prompt(name, seed=''):
  """The prompt of a sampling part, as far as where its picture begins."""
  part = golden.part(name)
  ids = np.concatenate([part['input_ids'], part['generated_ids'][:-1]]).astype(np.int32)
  prompt = {'tokens': ids, 'length': np.int32(len(ids))}
  if seed:
    prompt |= golden.seen(ids, part['image_grid_thw'], seed)
  return part, jax.tree.map(jnp.asarray, prompt)


def first_places(state, length):
  """[2] positions of the first place of a scale of so many places, of both branches: the one with a
  cache is beyond it, the other begins anew at each scale."""
  cond, uncond = state.branches
  return jnp.stack([cond.position - length, uncond.position])


def test_every_scale_of_an_edit_is_drawn_from_the_official_logits():
  """Its own bits are fed back, so that one tie does not spread; the positions are the released
  ones.
  """
  part, prompt = sampling_prompt('edit_sample_noise', 'dev/edit_noise/a')
  m, t_Le = golden.load(), golden.bits(part['bits_packed'], 1)[0]

  @jax.jit
  def run(params, prompt):
    one = net(m, params)
    context = one.prefill(prompt)
    state, z, out, places = one.start_image(context, True), m.tokenizer.zeros(1), [], []
    memory, text_logits = state.branches[0].memory[0], one.text_logits(context.memory[0].h_1SD)
    for i, (a, b) in enumerate(bounds(m.c.scales)):
      out.append(state.logits_BLV)
      places.append(first_places(state, b - a))
      z, inputs_1LC = one.tokenize('step', z, t_Le[None, a:b], i)
      if inputs_1LC is not None:
        state = one.next_scale(state, inputs_1LC, i + 1)
    return text_logits, memory[0], jnp.concatenate(out, 1), z, jnp.stack(places)

  words, memory, (cond, uncond), z, place = run(m.params, prompt)
  S, n = int(prompt['length']), len(part['text_logits'])
  np.testing.assert_allclose(words[S - n : S], part['text_logits'], atol=1e-4)
  np.testing.assert_allclose(memory[: S - 1], part['memory'][: S - 1], atol=2e-4)
  for found, name in ((cond, 'cond'), (uncond, 'uncond')):
    np.testing.assert_allclose(found.reshape(521, 64)[::8], part[f'logits_{name}'], atol=1e-4)
  np.testing.assert_allclose(
    (3 * cond - 2 * uncond).reshape(521, 64)[::8] / 0.5, part['logits_guided'], atol=1e-3
  )
  np.testing.assert_allclose(z[0].transpose(2, 0, 1), part['latent'][0], atol=1e-5)
  calls = part['call_positions'][-2 * len(place) :].reshape(-1, 2, 7)[:, :, 1]
  np.testing.assert_array_equal(place, calls)


@pytest.mark.slow
def test_greedy_drawing_is_the_official_picture():
  part, prompt = sampling_prompt('t2i_sample_greedy')
  m, greedy = golden.load(), drawing(top_p=1e-6)

  @jax.jit
  def run(params, codes, prompt_P, keys_PR):
    one = net(m, params, codes)
    out = generate.generate(one, greedy, prompt_P, keys_PR[:, 0], keys_PR)
    scores, _ = score.score([one], greedy, prompt_P, out.data)
    return out, scores, one.tokenize('decode', out.data['image']['tokens'][:, 0])

  keys_PR = vmaps.row_keys(jax.random.key(0), 1, 2)
  out, scores, image = run(m.params, m.codes, jax.tree.map(lambda x: x[None], prompt), keys_PR)
  for t_Le in out.data['image']['tokens'][0]:
    np.testing.assert_array_equal(t_Le, golden.bits(part['bits_packed'], 1)[0])
  np.testing.assert_allclose(scores.logp, out.logp, atol=1e-4)
  levels = ((np.asarray(image[0]) + 1) / 2 * 255).astype(np.uint8)[::4, ::4, ::-1].astype(int)
  assert abs(levels - part['image_u8_bgr']).max() <= 1


def test_export_of_import_is_the_released_folder_bit_for_bit(tmp_path):
  m, state = golden.load(), golden.state()
  torch_format.save(tmp_path / 'folder', m.layouts[0], m.params, max_file_bytes=2e6)
  found = {key: np.asarray(x) for key, x in files.open_tensors(tmp_path / 'folder').items()}
  codes = torch_format.to_state_dict(m.tokens[-1].table, m.codes, m.tokens[-1].constants)
  assert set(found) | set(codes) == set(state) and not set(found) & set(codes)
  table = 'sos_embedding.weight'
  np.testing.assert_array_equal(found[table][-1], state[table][-1])
  assert (
    found[table].shape == state[table].shape and not found[table][:-1].any()
  )  # which nothing reads
  for key, x in (found | codes).items():
    if key != table:
      np.testing.assert_array_equal(x, state[key], err_msg=key)


def test_a_table_of_start_embeddings_of_another_length_is_told(tmp_path):
  m = golden.load()
  changed = unified.torch_layouts(dataclasses.replace(m.c, image_tokens=(300, 309, 310)))
  with pytest.raises(ValueError, match='sos_embedding.weight has 309 rows, 301 expected'):
    torch_format.load(m.path, changed, jax.eval_shape(lambda: m.params))
