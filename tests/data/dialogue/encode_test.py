"""Dialogues as arrays: the released rendering, the masks drawn, positions, memories, crops."""

import types

import numpy as np
from PIL import Image
import pytest

from vargrl.data import image, patches, text
from vargrl.data.dialogue import encode

DRAW = [('user', 'hello'), ('assistant', 'the dog.<image_gen>')]
EDIT = [('user', 'make <image> a cat'), ('assistant', 'it is: <image_gen>')]
TWO = [
  ('user', 'hello'),
  ('assistant', 'a cat<image_gen>'),
  ('user', 'a dog'),
  ('assistant', 'the<image_gen> world'),
]
SYSTEM = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'


def rendered(talks, told):
  return text.decode(talks.form().words, told.tokens, special=True)


def trained(talks, told):
  """The text with what is trained in brackets."""
  words = talks.form().words
  edges = np.flatnonzero(np.diff(np.r_[0, told.wanted, 0]))
  parts = np.split(told.tokens, edges)
  return ''.join(
    f'[{x}]' if i % 2 else x
    for i, x in enumerate(text.decode(words, p, special=True) for p in parts)
  )


def test_dialogues_are_rendered_as_the_released_code_does(talks, tell):
  pad, seen = text.DRAW, text.IMAGE
  assert rendered(talks, tell(DRAW, ['1.png'])) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nthe '
    f'dog.<|image_gen_start|>{pad * 5}'
    '<|image_gen_end|><|im_end|>'
  )
  assert rendered(talks, tell(EDIT, ['2.png', '1.png'], drawn=2)) == (
    f'{SYSTEM}<|im_start|>user\nmake <|vision_start|>{seen * 4}<|vision_end|> a cat<|im_end|>\n'
    f'<|im_start|>assistant\nit is: <|image_gen_start|>{pad * 2}<|image_gen_end|><|im_end|>'
  )


def test_what_is_trained_is_what_the_assistant_says_and_the_beginning_of_a_picture(talks, tell):
  pad = text.DRAW
  assert trained(talks, tell(DRAW, ['1.png'], drawn=2)) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[the '
    f'dog.<|image_gen_start|>]{pad * 2}'
    '<|image_gen_end|>[<|im_end|>]'
  )
  assert trained(talks, tell(TWO, ['0.png', '1.png'], drawn=1)) == (
    f'{SYSTEM}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[a '
    f'cat<|image_gen_start|>]{pad}'
    f'<|image_gen_end|>[<|im_end|>]\n<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n'
    f'[the<|image_gen_start|>]{pad}<|image_gen_end|>[ world<|im_end|>]'
  )
  first = '<|im_start|>'  # nothing is before a sequence's first token
  assert trained(talks, tell(DRAW, ['1.png'], drawn=2, wanted='all')) == (
    f'{first}[{SYSTEM.removeprefix(first)}<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n'
    f'the dog.<|image_gen_start|>]{pad * 2}[<|image_gen_end|><|im_end|>]'
  )
  talk = [('user', 'hello'), ('assistant', 'a cat')]
  assert trained(talks, tell(talk, wanted='all')) == trained(
    talks, tell(talk)
  )  # of those that draw alone


def test_positions_count_a_picture_that_is_seen_by_row_and_column_and_one_that_is_drawn_like_words(
  talks, tell
):
  told = tell(EDIT, ['0.png', '1.png'])
  seen, drawn = (text.number(talks.form().words, token) for token in (text.IMAGE, text.DRAW))
  assert (
    told.seen.sizes == [(4, 4)]
    and told.place.tolist()
    == np.where(told.tokens == seen, np.cumsum(told.tokens == seen) - 1, -1).tolist()
  )
  time, row, column = told.position - told.position[:, [told.tokens.tolist().index(seen)]]
  at = told.tokens == seen
  assert (time[at].tolist(), row[at].tolist(), column[at].tolist()) == (
    [0] * 4,
    [0, 0, 1, 1],
    [0, 1, 0, 1],
  )
  after = np.arange(len(at)) > np.flatnonzero(at)[-1]
  for axis in (time, row, column):
    assert axis[after].tolist() == [*range(2, 2 + after.sum())]
  assert (told.tokens == drawn)[after].any() and told.position[:, 0].tolist() == [0, 0, 0]


def test_plain_positions_know_nothing_of_pictures(talks, tell):
  told, plain = (tell(EDIT, ['0.png', '1.png'], positions=p) for p in ('mrope', 'plain'))
  np.testing.assert_array_equal(plain.position, np.tile(np.arange(len(told.tokens)), (3, 1)))
  np.testing.assert_array_equal(plain.tokens, told.tokens)
  assert (told.position != plain.position).any()


def test_a_pictures_memory_is_all_before_it_but_what_draws_other_pictures(talks, tell):
  told = tell(TWO, ['0.png', '1.png'])
  number = {
    name: text.number(talks.form().words, name)
    for name in (text.DRAW, text.DRAW_START, text.DRAW_END)
  }
  for slot, memory in zip(told.slot, told.memory, strict=True):
    assert (
      told.tokens[slot - 1] == number[text.DRAW_START]
      and (told.tokens[slot : slot + 5] == number[text.DRAW]).all()
    )
    assert told.tokens[slot + 5] == number[text.DRAW_END]
    assert memory.tolist() == [i for i in range(slot - 1) if told.tokens[i] != number[text.DRAW]]
  assert len(told.slot) == 2 and number[text.DRAW_END] in told.tokens[told.memory[1]]
  np.testing.assert_array_equal(
    told.image[0], encode.target(talks.form(), str(talks.pictures / '0.png'), 0)
  )


def test_a_dropped_prompt_is_the_dialogue_that_says_nothing(talks, tell):
  for said, pictures in ((DRAW, ['1.png']), (EDIT, ['0.png', '1.png'])):
    told = tell(said, pictures, prompt_drop=1.0)
    assert rendered(talks, told) == (
      f'{SYSTEM}<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|image_gen_start|>'
      f'{text.DRAW * 5}<|image_gen_end|><|im_end|>'
    )
    assert len(told.seen.patches) == 0 and len(told.memory[0]) == told.slot[0] - 1
    np.testing.assert_array_equal(told.image, tell(said, pictures).image)
  some = [tell(TWO, ['0.png', '1.png'], prompt_drop=0.5, seed=i) for i in range(40)]
  assert 10 < sum(len(told.slot) == 1 for told in some) < 30
  assert (
    len({told.image.tobytes() for told in some if len(told.slot) == 1}) == 2
  )  # one of the pictures, at random
  assert len(tell([('user', 'hello'), ('assistant', 'a cat')], prompt_drop=1.0).tokens) > 20


def test_a_prompt_is_the_beginning_of_what_is_trained(talks, tell):
  for said, pictures in ((DRAW, ['1.png']), (EDIT, ['0.png', '1.png'])):
    dialogue = encode.Dialogue(tuple(said), tuple(str(talks.pictures / name) for name in pictures))
    told = tell(said, pictures)
    for draw, end in (
      (False, told.tokens.tolist().index(text.encode(talks.form().words, said[-1][1])[0])),
      (True, told.slot[0]),
    ):
      prompt = encode.opening(talks.form(), dialogue, draw=draw)
      assert prompt.tokens.tolist() == told.tokens[: len(prompt.tokens)].tolist()
      assert len(prompt.tokens) == end if draw else not told.wanted[: len(prompt.tokens)].any()
      np.testing.assert_array_equal(prompt.position, told.position[:, : len(prompt.tokens)])
      np.testing.assert_array_equal(prompt.seen.patches, told.seen.patches)
    if not draw:
      assert told.wanted[len(prompt.tokens)]


def test_an_edit_sees_and_draws_the_same_crop(talks, tell, tmp_path):
  pixels = np.random.default_rng(5).integers(0, 256, (16, 40, 3)).astype(np.uint8)
  form = talks.form(look=talks.look | dict(least=256, most=256), size=(16, 16))
  dialogue = encode.Dialogue(tuple(EDIT), (pixels, pixels))
  told = encode.whole(
    form,
    dialogue,
    np.random.default_rng(0),
    drawn=5,
    wanted='assistant',
    positions='mrope',
    prompt_drop=0.0,
  )
  middle, (h, w) = pixels[:, 12:28], told.seen.sizes[0]
  np.testing.assert_array_equal(told.image[0], image.to_float(middle))
  np.testing.assert_array_equal(
    told.seen.patches, patches.cut(middle, **talks.look | dict(least=256, most=256))[0]
  )
  alone = encode.see(form, [pixels], framed=False)  # a picture to talk about is seen whole
  assert (h, w) == (8, 8) and alone.sizes[0][1] > alone.sizes[0][0]
  assert image.framed(pixels[:, :8], height=16, width=16).shape == (8, 8, 3)


def test_the_released_crop_leaves_pixels_out_resizes_and_crops_at_random(talks):
  form, pixels = (
    talks.form(crop='released'),
    np.random.default_rng(3).integers(0, 256, (600, 700, 3)).astype(np.uint8),
  )
  small = np.asarray(
    Image.fromarray(pixels).resize((553, 474), Image.Resampling.NEAREST)
  )  # 512 * 512 / (600 * 700)
  np.testing.assert_array_equal(image.shrunk(pixels, most=512 * 512), small)
  assert image.shrunk(pixels[:9], most=6300).shape == (9, 700, 3)
  resized = np.asarray(
    Image.fromarray(small).resize((10, 9), Image.Resampling.LANCZOS)
  )  # 9 is 1.125 of 8
  crops = {
    image.to_float(resized[y : y + 8, x : x + 8]).tobytes() for y in range(2) for x in range(3)
  }
  found = {encode.target(form, pixels, draw).tobytes() for draw in range(30)}
  assert found <= crops and len(found) > 3
  assert encode.target(form, pixels, 7).tobytes() == encode.target(form, pixels, 7).tobytes()


@pytest.mark.parametrize(
  'change, message',
  [
    (
      dict(look=dict(patch=2)),
      r"data.look: keys \['patch'\] found, \['frames', 'least', 'merge', 'most', 'patch'\]",
    ),
    (dict(crop='middle'), r"data.crop: 'middle' found, one of \('cover', 'released'\) expected"),
    (
      dict(size=(8, 4), crop='released'),
      "data.size: 8 x 4 found with crop 'released', a square expected",
    ),
  ],
)
def test_a_form_that_does_not_fit_is_told(talks, change, message):
  with pytest.raises(ValueError, match=message):
    talks.form(**change)


def test_a_tokenizer_without_tokens_for_drawing_gets_them_after_its_last(talks, tmp_path):
  import small_qwen

  small_qwen.write(tmp_path)
  found, count = encode.special(types.SimpleNamespace(tokenizer=str(tmp_path)))
  before = text.read(tmp_path).tokenizer.get_vocab_size()
  assert found == (before, before + 1, before + 2) and count == before + 3
  assert talks.form(tokenizer=str(tmp_path)).words.tokenizer.token_to_id(text.DRAW) == before + 2


def test_tokens_of_pictures_in_a_text_are_refused(tell):
  with pytest.raises(
    ValueError, match=r'1 tokens <\|image_gen_pad\|> found, one for each of 0 <image_gen> expected'
  ):
    tell([('user', f'a{text.DRAW}'), ('assistant', 'a cat')])
  with pytest.raises(ValueError, match='1 places for pictures .* 0 pictures expected'):
    tell([('user', f'a{text.IMAGE}'), ('assistant', 'a cat')])
