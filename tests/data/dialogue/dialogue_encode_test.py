"""Dialogues as arrays: the released rendering, the masks drawn, positions, memories, crops."""

import types

import numpy as np
from PIL import Image
import pytest

from vargrl.data import image, patches, text
from vargrl.data.dialogue import encode
from vargrl.data.dialogue import tokenizer as tokenizers

DRAW = [('user', 'hello'), ('assistant', 'the dog.<image_gen>')]
EDIT = [('user', 'make <image> a cat'), ('assistant', 'it is: <image_gen>')]
TWO = [
  ('user', 'hello'),
  ('assistant', 'a cat<image_gen>'),
  ('user', 'a dog'),
  ('assistant', 'the<image_gen> world'),
]
SYSTEM = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'


def rendered(talks, encoded):
  return text.decode(talks.format().tokenizer, encoded.tokens, special=True)


def trained(talks, encoded):
  """The text with what is trained in brackets."""
  words = talks.format().tokenizer
  edges = np.flatnonzero(np.diff(np.r_[0, encoded.loss_mask, 0]))
  parts = np.split(encoded.tokens, edges)
  return ''.join(
    f'[{x}]' if i % 2 else x
    for i, x in enumerate(text.decode(words, p, special=True) for p in parts)
  )


def test_dialogues_are_rendered_as_the_released_code_does(talks, encode_talk):
  pad, seen = text.GEN_PAD, text.VISION_PAD
  assert rendered(talks, encode_talk(DRAW, ['1.png'])) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nthe '
    f'dog.<|image_gen_start|>{pad * 5}'
    '<|image_gen_end|><|im_end|>'
  )
  assert rendered(talks, encode_talk(EDIT, ['2.png', '1.png'], image_tokens=2)) == (
    f'{SYSTEM}<|im_start|>user\nmake <|vision_start|>{seen * 4}<|vision_end|> a cat<|im_end|>\n'
    f'<|im_start|>assistant\nit is: <|image_gen_start|>{pad * 2}<|image_gen_end|><|im_end|>'
  )


def test_what_is_trained_is_what_the_assistant_says_and_the_beginning_of_a_picture(
  talks, encode_talk
):
  pad = text.GEN_PAD
  assert trained(talks, encode_talk(DRAW, ['1.png'], image_tokens=2)) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[the '
    f'dog.<|image_gen_start|>]{pad * 2}'
    '<|image_gen_end|>[<|im_end|>]'
  )
  assert trained(talks, encode_talk(TWO, ['0.png', '1.png'], image_tokens=1)) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[a '
    f'cat<|image_gen_start|>]{pad}'
    f'<|image_gen_end|>[<|im_end|>]\n<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n'
    f'[the<|image_gen_start|>]{pad}<|image_gen_end|>[ world<|im_end|>]'
  )
  first = '<|im_start|>'  # nothing is before a sequence's first token
  assert trained(talks, encode_talk(DRAW, ['1.png'], image_tokens=2, loss_on='all')) == (
    f'{first}[{SYSTEM.removeprefix(first)}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n'
    f'the dog.<|image_gen_start|>]{pad * 2}[<|image_gen_end|><|im_end|>]'
  )
  talk = [('user', 'hello'), ('assistant', 'a cat')]
  assert trained(talks, encode_talk(talk, loss_on='all')) == trained(
    talks, encode_talk(talk)
  )  # of those that draw alone


def test_positions_count_a_picture_that_is_seen_by_row_and_column_and_one_that_is_drawn_like_words(
  talks, encode_talk
):
  encoded = encode_talk(EDIT, ['0.png', '1.png'])
  seen, drawn = (
    text.token_id(talks.format().tokenizer, token) for token in (text.VISION_PAD, text.GEN_PAD)
  )
  assert (
    encoded.vision.sizes == [(4, 4)]
    and encoded.image_index.tolist()
    == np.where(encoded.tokens == seen, np.cumsum(encoded.tokens == seen) - 1, -1).tolist()
  )
  time, row, column = encoded.position - encoded.position[:, [encoded.tokens.tolist().index(seen)]]
  at = encoded.tokens == seen
  assert (time[at].tolist(), row[at].tolist(), column[at].tolist()) == (
    [0] * 4,
    [0, 0, 1, 1],
    [0, 1, 0, 1],
  )
  after = np.arange(len(at)) > np.flatnonzero(at)[-1]
  for axis in (time, row, column):
    assert axis[after].tolist() == [*range(2, 2 + after.sum())]
  assert (encoded.tokens == drawn)[after].any() and encoded.position[:, 0].tolist() == [0, 0, 0]


def test_plain_positions_know_nothing_of_pictures(talks, encode_talk):
  encoded, plain = (
    encode_talk(EDIT, ['0.png', '1.png'], positions=p) for p in ('mrope', 'sequential')
  )
  np.testing.assert_array_equal(plain.position, np.tile(np.arange(len(encoded.tokens)), (3, 1)))
  np.testing.assert_array_equal(plain.tokens, encoded.tokens)
  assert (encoded.position != plain.position).any()


def test_a_pictures_memory_is_all_before_it_but_what_draws_other_pictures(talks, encode_talk):
  encoded = encode_talk(TWO, ['0.png', '1.png'])
  number = {
    name: text.token_id(talks.format().tokenizer, name)
    for name in (text.GEN_PAD, text.GEN_START, text.GEN_END)
  }
  for slot, memory in zip(encoded.image_start, encoded.context, strict=True):
    assert (
      encoded.tokens[slot - 1] == number[text.GEN_START]
      and (encoded.tokens[slot : slot + 5] == number[text.GEN_PAD]).all()
    )
    assert encoded.tokens[slot + 5] == number[text.GEN_END]
    assert memory.tolist() == [
      i for i in range(slot - 1) if encoded.tokens[i] != number[text.GEN_PAD]
    ]
  assert (
    len(encoded.image_start) == 2 and number[text.GEN_END] in encoded.tokens[encoded.context[1]]
  )
  np.testing.assert_array_equal(
    encoded.image[0], encode.load_target(talks.format(), str(talks.images / '0.png'), 0)
  )


def test_a_dropped_prompt_is_the_dialogue_that_says_nothing(talks, encode_talk):
  for said, pictures in ((DRAW, ['1.png']), (EDIT, ['0.png', '1.png'])):
    encoded = encode_talk(said, pictures, prompt_drop=1.0)
    assert rendered(talks, encoded) == (
      f'{SYSTEM}<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|image_gen_start|>'
      f'{text.GEN_PAD * 5}<|image_gen_end|><|im_end|>'
    )
    assert (
      len(encoded.vision.patches) == 0 and len(encoded.context[0]) == encoded.image_start[0] - 1
    )
    np.testing.assert_array_equal(encoded.image, encode_talk(said, pictures).image)
  some = [encode_talk(TWO, ['0.png', '1.png'], prompt_drop=0.5, seed=i) for i in range(40)]
  assert 10 < sum(len(encoded.image_start) == 1 for encoded in some) < 30
  assert (
    len({encoded.image.tobytes() for encoded in some if len(encoded.image_start) == 1}) == 2
  )  # one of the pictures, at random
  assert len(encode_talk([('user', 'hello'), ('assistant', 'a cat')], prompt_drop=1.0).tokens) > 20


def test_a_prompt_is_the_beginning_of_what_is_trained(talks, encode_talk):
  for said, pictures in ((DRAW, ['1.png']), (EDIT, ['0.png', '1.png'])):
    dialogue = encode.Dialogue(tuple(said), tuple(str(talks.images / name) for name in pictures))
    encoded = encode_talk(said, pictures)
    for prefill, end in (
      (False, encoded.tokens.tolist().index(text.encode(talks.format().tokenizer, said[-1][1])[0])),
      (True, encoded.image_start[0]),
    ):
      prompt = encode.encode_prompt(talks.format(), dialogue, prefill_image=prefill)
      assert prompt.tokens.tolist() == encoded.tokens[: len(prompt.tokens)].tolist()
      assert (
        len(prompt.tokens) == end if prefill else not encoded.loss_mask[: len(prompt.tokens)].any()
      )
      np.testing.assert_array_equal(prompt.position, encoded.position[:, : len(prompt.tokens)])
      np.testing.assert_array_equal(prompt.vision.patches, encoded.vision.patches)
    if not prefill:
      assert encoded.loss_mask[len(prompt.tokens)]


def test_an_edit_sees_and_draws_the_same_crop(talks, encode_talk, tmp_path):
  pixels = np.random.default_rng(5).integers(0, 256, (16, 40, 3)).astype(np.uint8)
  format = talks.format(vision=talks.vision | dict(min_pixels=256, max_pixels=256), size=(16, 16))
  dialogue = encode.Dialogue(tuple(EDIT), (pixels, pixels))
  encoded = encode.encode(
    format,
    dialogue,
    np.random.default_rng(0),
    image_tokens=5,
    loss_on='assistant',
    positions='mrope',
    prompt_drop=0.0,
  )
  middle, (h, w) = pixels[:, 12:28], encoded.vision.sizes[0]
  np.testing.assert_array_equal(encoded.image[0], image.to_float(middle))
  np.testing.assert_array_equal(
    encoded.vision.patches,
    patches.to_patches(middle, **talks.vision | dict(min_pixels=256, max_pixels=256))[0],
  )
  alone = encode.encode_images(
    format, [pixels], framed=False
  )  # a picture to talk about is seen whole
  assert (h, w) == (8, 8) and alone.sizes[0][1] > alone.sizes[0][0]
  assert image.crop_to_aspect(pixels[:, :8], height=16, width=16).shape == (8, 8, 3)


def test_the_released_crop_leaves_pixels_out_resizes_and_crops_at_random(talks):
  format, pixels = (
    talks.format(crop='vargpt'),
    np.random.default_rng(3).integers(0, 256, (600, 700, 3)).astype(np.uint8),
  )
  small = np.asarray(
    Image.fromarray(pixels).resize((553, 474), Image.Resampling.NEAREST)
  )  # 512 * 512 / (600 * 700)
  np.testing.assert_array_equal(image.limit_pixels(pixels, max_pixels=512 * 512), small)
  assert image.limit_pixels(pixels[:9], max_pixels=6300).shape == (9, 700, 3)
  resized = np.asarray(
    Image.fromarray(small).resize((10, 9), Image.Resampling.LANCZOS)
  )  # 9 is 1.125 of 8
  crops = {
    image.to_float(resized[y : y + 8, x : x + 8]).tobytes() for y in range(2) for x in range(3)
  }
  found = {encode.load_target(format, pixels, draw).tobytes() for draw in range(30)}
  assert found <= crops and len(found) > 3
  assert (
    encode.load_target(format, pixels, 7).tobytes()
    == encode.load_target(format, pixels, 7).tobytes()
  )


@pytest.mark.parametrize(
  'change, message',
  [
    (
      dict(vision=dict(patch=2)),
      r"data.vision: keys \['patch'\] found, \['frames', 'max_pixels', 'merge', 'min_pixels',",
    ),
    (
      dict(crop='middle'),
      r"data.crop: 'middle' found, one of \('cover', 'vargpt', 'none'\) expected",
    ),
    (
      dict(size=(8, 4), crop='vargpt'),
      "data.size: 8 x 4 found with crop 'vargpt', a square expected",
    ),
  ],
)
def test_a_form_that_does_not_fit_is_told(talks, change, message):
  with pytest.raises(ValueError, match=message):
    talks.format(**change)


def test_a_tokenizer_without_tokens_for_drawing_gets_them_after_its_last(talks, tmp_path):
  import small_qwen

  small_qwen.write(tmp_path)
  data = types.SimpleNamespace(tokenizer=str(tmp_path), vision=talks.vision, size=(8, 8))
  found, count = tokenizers.image_token_ids(data)
  before = text.load(tmp_path).backend.get_vocab_size()
  assert found == (before, before + 1, before + 2) and count == before + 3
  assert (
    talks.format(tokenizer=str(tmp_path)).tokenizer.backend.token_to_id(text.GEN_PAD) == before + 2
  )


def test_tokens_of_pictures_in_a_text_are_refused(encode_talk):
  with pytest.raises(
    ValueError, match=r'1 tokens <\|image_gen_pad\|> found, one for each of 0 <image_gen> expected'
  ):
    encode_talk([('user', f'a{text.GEN_PAD}'), ('assistant', 'a cat')])
  with pytest.raises(ValueError, match='1 places for images .* found, 0 expected'):
    encode_talk([('user', f'a{text.VISION_PAD}'), ('assistant', 'a cat')])
