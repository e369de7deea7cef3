import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from vargrl.data import image
from vargrl.reporting import images

RGB = np.random.RandomState(0).randint(0, 256, (6, 9, 3)).astype(np.uint8)


def encoded(picture, kind, **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def png16(pixels):
  """16-bit colour, which Pillow reads and cannot write."""

  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  head = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def smooth(height, width):
  y, x = np.mgrid[:height, :width]
  return np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], -1).astype(np.uint8)


def test_lossless_pictures_decode_to_their_pixels():
  for kind in ('PNG', 'BMP', 'TIFF', 'PPM'):
    np.testing.assert_array_equal(image.decode(encoded(Image.fromarray(RGB), kind)), RGB)


def test_decoded_pixels_pass_and_grey_ones_get_three_channels():
  np.testing.assert_array_equal(image.decode(RGB), RGB)
  np.testing.assert_array_equal(image.decode(RGB[..., :1]), np.repeat(RGB[..., :1], 3, -1))


@pytest.mark.parametrize('mode', ['L', '1'])
def test_grey_pictures_have_three_equal_channels(mode):
  picture = Image.fromarray(RGB).convert(mode)
  grey = np.asarray(picture.convert('L'))
  np.testing.assert_array_equal(
    image.decode(encoded(picture, 'PNG')), np.repeat(grey[..., None], 3, -1)
  )


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_16_bit_grey_keeps_the_high_byte(kind):
  grey = RGB[..., 0].astype(np.uint16) << 8 | 37
  x = image.decode(encoded(Image.fromarray(grey), kind))
  np.testing.assert_array_equal(x, np.repeat(RGB[..., :1], 3, -1))


@pytest.mark.parametrize('most, kept', [(255, lambda x: x), (65535, lambda x: x >> 8)])
def test_32_bit_grey_has_its_values_or_their_high_byte(most, kept):
  grey = np.linspace(0, most, 54).astype(np.int32).reshape(6, 9)
  found = image.decode(encoded(Image.fromarray(grey), 'TIFF'))
  np.testing.assert_array_equal(found[..., 0], kept(grey))
  np.testing.assert_array_equal(found[..., 1:], found[..., :2])


@pytest.mark.parametrize('change', [-1, 65536])
def test_32_bits_without_a_known_range_are_unreadable(change):
  grey = np.full((6, 9), 7, np.int32)
  grey[3, 4] = change
  with pytest.raises(image.Unreadable, match=f'32-bit pixels from .*{change}.* 0 to 255 or'):
    image.decode(encoded(Image.fromarray(grey), 'TIFF'))


def test_postscript_is_no_picture():
  with pytest.raises(image.Unreadable, match='picture of 14 bytes: of no known kind'):
    image.decode(b'%!PS\nshowpage\n')


def test_16_bit_colour_keeps_the_high_byte():
  np.testing.assert_array_equal(image.decode(png16(RGB.astype(np.uint16) << 8 | 37)), RGB)


def test_palette_pictures_decode_to_their_colours():
  picture = Image.fromarray(RGB).quantize(16)
  colours = np.asarray(picture.convert('RGB'))
  for kind in ('PNG', 'GIF'):
    np.testing.assert_array_equal(image.decode(encoded(picture, kind)), colours)


def test_transparent_palette_entries_become_white():
  picture = Image.fromarray(RGB).quantize(16)
  expected = np.array(picture.convert('RGB'))
  expected[np.asarray(picture) == 3] = 255
  np.testing.assert_array_equal(image.decode(encoded(picture, 'PNG', transparency=3)), expected)


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_alpha_is_laid_over_white(mode):
  alpha = np.linspace(0, 255, RGB[..., 0].size).reshape(RGB.shape[:2]).astype(np.uint8)
  colour = RGB if mode == 'RGBA' else np.repeat(RGB[..., :1], 3, -1)
  channels = np.concatenate([colour if mode == 'RGBA' else RGB[..., :1], alpha[..., None]], -1)
  share = alpha[..., None] / 255
  x = image.decode(encoded(Image.fromarray(channels, mode), 'PNG'))
  np.testing.assert_allclose(x, colour * share + 255 * (1 - share), atol=1)


def test_cmyk_decodes_to_the_colours_it_was_made_from():
  pixels = smooth(32, 48)
  pixels[..., 2] = 128
  picture = Image.fromarray(pixels).convert('CMYK')
  for kind, options, near in (('TIFF', {}, 1), ('JPEG', {'quality': 100, 'subsampling': 0}, 8)):
    x = image.decode(encoded(picture, kind, **options)).astype(int)
    assert x.shape == pixels.shape and np.abs(x - pixels).max() <= near, kind


def test_every_exif_orientation_is_turned_upright():
  turned = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, 1),
    7: np.rot90(RGB, 2).transpose(1, 0, 2),
    8: np.rot90(RGB, -1),
  }
  for orientation, stored in turned.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), 'PNG', exif=exif)
    np.testing.assert_array_equal(image.decode(data), RGB, err_msg=str(orientation))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\0',
    b'\0' * 4096,
    b'not a picture',
    b'%PDF-1.7\n',
    b'\x89PNG\r\n\x1a\n',
    b'\xff\xd8\xff\xe0',
    b'GIF89a',
    b'RIFF\x10\0\0\0WEBPVP8 ',
    b'II*\0\x08\0\0\0',
  ],
)
def test_what_is_no_picture_is_unreadable(data):
  with pytest.raises(image.Unreadable, match='picture'):
    image.decode(data)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_a_picture_cut_anywhere_is_unreadable_or_whole(kind):
  data = encoded(Image.fromarray(smooth(24, 24)), kind)
  whole = image.decode(data)
  for end in range(0, len(data), max(1, len(data) // 150)):
    try:
      cut = image.decode(data[:end])
    except image.Unreadable:
      continue
    np.testing.assert_array_equal(cut, whole)


def test_floating_point_pixels_are_unreadable():
  with pytest.raises(image.Unreadable, match='floating-point'):
    image.decode(encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), 'TIFF'))


def test_none_squeezes_as_pillow_and_leaves_the_right_size_alone():
  expected = Image.fromarray(RGB).resize((16, 16), Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(image.fit(RGB, size=16, crop='none', rng=None), expected)
  square = smooth(16, 16)
  assert image.fit(square, size=16, crop='none', rng=None) is square


@pytest.mark.parametrize(
  'height, width, resized',
  [(40, 60, (36, 54)), (61, 40, (54, 36)), (50, 50, (36, 36)), (20, 33, (36, 59))],
)
def test_center_is_the_middle_of_pillows_resized_picture(height, width, resized):
  pixels = smooth(height, width)
  picture = Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.LANCZOS)
  left, top = round((resized[1] - 32) / 2), round((resized[0] - 32) / 2)
  expected = picture.crop((left, top, left + 32, top + 32))
  x = image.fit(pixels, size=32, crop='center', rng=None)
  np.testing.assert_array_equal(x, expected)


def test_random_crops_are_windows_of_the_resized_picture_and_reach_its_edges():
  pixels = smooth(20, 16)
  resized = np.asarray(Image.fromarray(pixels).resize((18, 22), Image.Resampling.LANCZOS))
  windows = {resized[y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(7) for x in range(3)}
  assert len(windows) == 21
  rng = np.random.default_rng(0)
  found = {
    windows[image.fit(pixels, size=16, crop='random', rng=rng).tobytes()] for _ in range(400)
  }
  assert found == set(windows.values())


def test_an_unknown_crop_is_an_error():
  with pytest.raises(ValueError, match="crop: 'middle' found"):
    image.fit(RGB, size=4, crop='middle', rng=None)


def test_half_of_the_flips_mirror():
  rng = np.random.default_rng(0)
  mirrored = [not np.array_equal(image.flip(RGB, rng), RGB) for _ in range(400)]
  assert 160 < sum(mirrored) < 240
  assert any(np.array_equal(image.flip(RGB, rng), RGB[:, ::-1]) for _ in range(20))


def test_floats_and_back_is_the_identity_on_all_bytes():
  x = np.arange(256).astype(np.uint8)
  y = image.to_float(x)
  assert y.dtype == np.float32 and y[0] == -1 and y[255] == 1
  np.testing.assert_allclose(y, 2 * x.astype(np.float64) / 255 - 1, atol=2e-7)
  np.testing.assert_array_equal(images.pixels(y), x)
  np.testing.assert_array_equal(images.pixels([-7.0, -1.0, 0.0, 1.0, 7.0]), [0, 0, 128, 255, 255])
