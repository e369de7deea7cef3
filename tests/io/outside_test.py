"""Text, JSON, paths, pictures and numbers as they come from outside."""

import io
import json
import math
import os
import pathlib

from PIL import Image, UnidentifiedImageError
import pytest

from vargrl.io import numbers, paths, pictures, text


def test_a_path_is_expanded_once(monkeypatch):
  monkeypatch.setenv('HOME', '/somewhere')
  assert paths.path('~/x') == paths.path(paths.path('~/x')) == pathlib.Path('/somewhere/x')
  assert paths.path('a/~/b') == pathlib.Path('a/~/b')
  with pytest.raises(ValueError, match='without a NUL'):
    paths.path('a\0b')
  with pytest.raises(ValueError, match='home of nobody'):
    paths.path('~nobody-of-this-name/x')


def test_only_a_known_ending_is_one():
  assert paths.known_ending('VARGPT-v1.1', ('.pth',)) == ''
  assert paths.known_ending('a/B.PTH', ('.pth',)) == '.pth'


def test_lines_end_at_line_feeds_alone():
  lines = ['a\u2028b', 'c\x0cd\x1ee\x85f', '', 'g\rh']
  assert text.split_lines('\r\n'.join(lines) + '\n') == lines == text.split_lines('\n'.join(lines))
  assert text.split_lines('') == []


def test_a_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbfone\r\ntwo')
  assert text.read_lines(tmp_path / 'a.txt') == ['one', 'two']
  assert text.parse_json(b'\xef\xbb\xbf{"a": 1}', 'x') == {'a': 1}


@pytest.mark.parametrize(
  'data, sentence',
  [
    (b'[' * 100_000, 'nested too deeply'),
    (b'{"a":' * 100_000, 'nested too deeply'),
    (b'"\\ud83d"', 'half of a surrogate pair'),
    (b'{"\\uDC00": 1}', 'half of a surrogate pair'),
    (b'\xff', 'byte 0 is 0xff'),
    (b'{', 'no JSON'),
    (b'', 'no JSON'),
    (b'1' * 10_000, 'no JSON'),
    (b'3', 'int found in JSON, a dictionary expected'),
    (b'[' + b'{"a":0},' * 5_000_000 + b'0]', 'MiB of memory'),
    (b'[' + b'{},' * 3_000_000 + b'"' + b'\\"' * 1000, 'MiB of memory'),
  ],
)
def test_what_is_no_json_is_one_sentence(tmp_path, data, sentence):
  file = tmp_path / 'x.json'
  file.write_bytes(data)
  with pytest.raises(ValueError, match=sentence) as error:
    text.read_json(file)
  assert str(error.value).startswith(str(file))


def test_whole_pairs_and_braces_in_texts_are_json():
  assert text.parse_json('"\\ud83d\\ude00"', 'x') == '😀'
  braces = json.dumps('{' * 4_000_000)
  assert len(text.parse_json(braces, 'x')) == 4_000_000


def test_rows_that_a_crash_has_cut_are_left_out():
  rows = text.parse_rows(b'{"a": "x\xe2\x80\xa8y"}\n\0\0\0\n[1]\n{"b": 2}\n{"c"')
  assert [row for _, row in rows] == [{'a': 'x\u2028y'}, {'b': 2}]
  assert b''.join(line for line, _ in rows).startswith(b'{"a"')


def test_files_are_written_whole(tmp_path):
  text.write_json(tmp_path / 'new' / 'x.json', {'a': 1})
  assert text.read_json(tmp_path / 'new' / 'x.json') == {'a': 1}
  assert os.listdir(tmp_path / 'new') == ['x.json']
  (tmp_path / 'empty').write_bytes(b'')
  assert text.read_own_json(tmp_path / 'empty') is text.read_own_json(tmp_path / 'none') is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
  assert text.check_writable(tmp_path / 'a' / 'b', '--out').is_dir()
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(ValueError, match='--out: cannot write to'):
    text.check_writable(tmp_path / 'file' / 'x', '--out')


def test_postscript_is_no_picture():
  for head in (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'%!PS'):
    with pytest.raises(UnidentifiedImageError):
      pictures.open_image(head + b'showpage\n')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000'])
def test_pictures_that_people_have_are_opened(kind):
  data = io.BytesIO()
  Image.new('RGB', (9, 7), 'red').save(data, kind)
  assert pictures.open_image(data.getvalue()).size == (9, 7)


@pytest.mark.parametrize(
  'value, bounds, sentence',
  [
    (math.nan, dict(least=0), 'nan found, a number at least 0 expected'),
    (math.nan, dict(finite=False), 'nan found, a number expected'),
    (math.inf, dict(least=0), 'inf found'),
    (0, dict(above=0, most=1), 'a number above 0 and at most 1 expected'),
    (1.5, dict(whole=True), 'an integer expected'),
    (True, {}, 'True found, a finite number expected'),
    ('3', {}, "'3' found"),
    (None, {}, 'None found'),
  ],
)
def test_a_number_out_of_bounds_is_told(value, bounds, sentence):
  with pytest.raises(ValueError, match=f'^rate: .*{sentence}'):
    numbers.check_number('rate', value, **bounds)


def test_numbers_within_bounds_are_returned():
  assert numbers.check_number('x', 0.5, above=0, most=1) == 0.5
  assert numbers.check_number('x', math.inf, least=0, finite=False) == math.inf
