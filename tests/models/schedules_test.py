from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.models import infinity_block, schedules
from vargrl.training import assemble
from vargrl.types import bounds, leading, offsets, sides

# Tokens of 0.06M, 0.25M, 0.60M and 1M, and the image's sides at 1M, of the published table.
COUNTS = {
  1.0: (521, 2521, 6425, 10521, 1024, 1024),
  1.25: (614, 2814, 6854, 10774, 1120, 896),
  1.333: (665, 2657, 7085, 10973, 1152, 864),
  1.5: (533, 2759, 6941, 10997, 1248, 832),
  1.75: (472, 2628, 7220, 11252, 1344, 768),
  2.0: (451, 2681, 7219, 11269, 1440, 720),
  2.5: (555, 2555, 6805, 10805, 1600, 640),
  3.0: (509, 2588, 7016, 11123, 1776, 592),
}


def test_every_schedule_has_the_published_number_of_tokens_and_its_inverse_the_same():
  assert [*schedules.TABLE] == [0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8, *COUNTS]
  for ratio, (*counts, y, x) in COUNTS.items():
    for name, turn in ((ratio, 1), (int(1000 / ratio) / 1000, -1)):
      found = [schedules.scales(f'{size} {name}') for size in schedules.SIZES]
      assert [offsets(s)[-1] for s in found] == counts
      assert [16 * n for n in sides(found[-1][-1])] == [y, x][::turn]
  assert schedules.scales('0.25M') == schedules.scales('0.25M 1.0')


def test_positions_are_those_of_the_finest_grid_rounded_half_to_even_in_float32():
  rows = lambda h, H: schedules.token_positions(((h, 1),), (H, 1))[:, 0].tolist()
  assert rows(6, 64) == [0, 11, 21, 32, 43, 53]
  assert rows(12, 64) == [0, 5, 11, 16, 21, 27, 32, 37, 43, 48, 53, 59]
  assert rows(20, 64) == [
    0,
    3,
    6,
    10,
    13,
    16,
    19,
    22,
    26,
    29,
    32,
    35,
    38,
    42,
    45,
    48,
    51,
    54,
    58,
    61,
  ]
  assert rows(24, 64)[:8] == [0, 3, 5, 8, 11, 13, 16, 19] and rows(24, 64)[-1] == 61
  assert rows(32, 64) == [*range(0, 64, 2)]
  assert rows(54, 111)[27] == 56  # 55.5 in float32, less in float64
  places = schedules.token_positions((1, (2, 3)), (4, 9))
  assert places.tolist() == [[0, 0], [0, 0], [0, 3], [0, 6], [2, 0], [2, 3], [2, 6]]


def test_a_schedule_cut_short_keeps_the_grid_of_its_finest_scale():
  for size in schedules.SIZES:
    assert schedules.grid(schedules.scales(f'{size} 0.666')) == (52, 78)
  assert schedules.grid((1, 2, 4, 6, 8, 12, 16)) == (64, 64)
  assert schedules.grid((1, 2, (4, 2))) == (4, 2)


@pytest.mark.parametrize(
  'name, size', [('models.infinity', '2b'), ('models.unified', 'vargpt-v1.1')]
)
def test_a_policy_of_other_scales_has_their_positions(name, size):
  for scales, over in (('0.25M 1.333', (72, 54)), ('0.25M', (64, 64)), ('1x1 2x2 4x4', (4, 4))):
    c = assemble.module(ConfigDict(dict(name=name, size=size, scales=scales)), 'policy')[1].c
    c = getattr(c, 'decoder', c)
    assert c.rope_grid == over
    row_and_column = infinity_block.rope_grid_angles(c)[-1, [0, c.head_dim // 2]]
    np.testing.assert_array_equal(row_and_column, schedules.token_positions(c.scales, over)[-1])


def test_pairs_and_sides_are_scales():
  assert sides(3) == (3, 3) and sides((2, 5)) == (2, 5)
  assert offsets((1, (2, 3), 2)) == [0, 1, 7, 11] and bounds((1, (2, 3))) == [(0, 1), (1, 7)]
  assert leading((1, (2, 3), 2), 7) == (1, (2, 3))
  assert schedules.scales([1, [2, 3]]) == (1, (2, 3)) and schedules.scales('1x1 2x3') == (
    (1, 1),
    (2, 3),
  )


@pytest.mark.parametrize('wrong', ['2M', '1M 1.1', '1M tall', '1x1 2x0', (), (0, 1), ((1, 2, 3),)])
def test_what_is_no_schedule_is_refused(wrong):
  with pytest.raises(ValueError, match='scales: .* expected'):
    schedules.scales(wrong)
