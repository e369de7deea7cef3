import json
import math
import os
import pathlib
import subprocess
import sys
import warnings

from clu.metrics import Average
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from vargrl import metrics
from vargrl.reporting import writer as writing

ROOT = pathlib.Path(__file__).parents[2]


def rows(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def values(step):
  x = jnp.arange(6.0).reshape(2, 3) + step
  mask = jnp.array([[1, 1, 0], [1, 0, 0]])
  return {'loss': metrics.average(x, mask), 'lr': jnp.float32(0.5) ** step, 'reward/all': step / 3}


def image(step):
  return np.full((4, 5, 3), step, np.uint8)


def files(workdir):
  return {
    str(p.relative_to(workdir)): p.read_bytes()
    for p in workdir.rglob('*')
    if p.is_file() and 'tensorboard' not in p.parts
  }


def test_average_is_the_weighted_total_and_the_weight():
  x = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
  plain = metrics.average(x)
  assert (float(plain.total), float(plain.count)) == (63, 6)
  # Weights by row: 0.5 * (1 + 2 + 4) + 2 * (8 + 16 + 32) = 115.5 over 3 * 0.5 + 3 * 2 = 7.5.
  by_row = metrics.average(x, jnp.array([[0.5], [2.0]]))
  assert (float(by_row.total), float(by_row.count)) == (115.5, 7.5)
  scalar = metrics.average(x, 2.0)
  assert (float(scalar.total), float(scalar.count)) == (126, 12)
  clipped = metrics.average(x > 3, x > 1)
  assert (float(clipped.total), float(clipped.count)) == (4, 5)


def test_average_is_float32_of_bfloat16_and_runs_under_jit():
  # 300 ones: bfloat16 counts to 256 and stays there.
  mean = jax.jit(metrics.average)(jnp.ones(300, jnp.bfloat16), jnp.ones(300, jnp.bfloat16))
  assert isinstance(mean, Average)
  assert mean.total.dtype == mean.count.dtype == jnp.float32
  assert (float(mean.total), float(mean.count)) == (300, 300)


def test_masked_values_may_be_anything():
  mean = metrics.average(jnp.array([3.0, jnp.inf, jnp.nan]), jnp.array([1, 0, 0]))
  assert float(mean.compute()) == 3


def test_averages_of_unequal_parts_merge_to_the_average_of_the_whole():
  x, w = jnp.arange(12.0), jnp.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
  parts = metrics.average(x[:4], w[:4]).merge(metrics.average(x[4:], w[4:]))
  assert float(parts.compute()) == float(metrics.average(x, w).compute()) == 39 / 6


@pytest.mark.parametrize('shape', [(2,), (3,), (2, 2), (2, 3, 1)])
def test_a_weight_of_another_rank_or_size_is_refused(shape):
  with pytest.raises(ValueError, match=r'weight: shape .* found'):
    metrics.average(jnp.ones((2, 3)), jnp.ones(shape))


def test_rows_come_one_step_late_and_flush_brings_the_last(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  for step in range(3):
    writer.add(step, values(step))
    assert [row['step'] for row in writing.load(tmp_path)] == list(range(step))
  writer.flush()
  assert [row['step'] for row in writing.load(tmp_path)] == [0, 1, 2]
  writer.add(3, values(3))
  writer.close()
  writer.close()
  # (0 + 1 + 3) / 3, plus the step.
  want = [{'step': s, 'loss': 4 / 3 + s, 'lr': 0.5**s, 'reward/all': s / 3} for s in range(4)]
  for row, expected in zip(rows(tmp_path), want, strict=True):
    assert row == pytest.approx(expected)
    assert writing.load(tmp_path)[row['step']] == row


def test_parts_of_a_step_are_one_row_and_their_averages_merge(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  writer.add(0, {'loss': Average(total=jnp.float32(6), count=jnp.float32(2)), 'a': 1})
  writer.add(0, {'loss': Average(total=jnp.float32(1), count=jnp.float32(5)), 'b': 2})
  with pytest.raises(ValueError, match='a: added twice at step 0'):
    writer.add(0, {'a': 1})
  writer.close()
  assert rows(tmp_path) == [{'step': 0, 'loss': 1.0, 'a': 1.0, 'b': 2.0}]


def test_rows_stay_in_order_when_an_evaluation_comes_between(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  writer.add(0, {'loss': 1.0})
  writer.write_scalars(1, {'eval/fid': 7.0})
  writer.add(1, {'loss': 2.0})
  writer.close()
  assert [(row['step'], *list(row)[1:]) for row in rows(tmp_path)] == [
    (0, 'loss'), (1, 'eval/fid'), (1, 'loss'),
  ]  # fmt: skip


def test_a_step_before_the_last_one_is_refused(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  writer.add(5, {'loss': 1.0})
  with pytest.raises(ValueError, match='step 4 added after step 5'):
    writer.add(4, {'loss': 1.0})
  writer.close()


def test_what_is_not_a_scalar_is_refused_by_name(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  with pytest.raises(ValueError, match=r'grad: shape \(2,\) found'):
    writer.add(0, {'grad': jnp.ones(2)})
  with pytest.raises(ValueError, match='step: found as the name'):
    writer.add(0, {'step': 1})
  with pytest.raises(ValueError, match=r'a: float64 \[2, 2, 3\] found, uint8'):
    writer.write_images(0, {'a': np.zeros((2, 2, 3))})
  with pytest.raises(ValueError, match='gs://b/run found, a local folder'):
    writing.Writer('gs://b/run', first=0)
  writer.close()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_nonfinite_value_is_named_after_its_row_is_written(tmp_path, value):
  writer = writing.Writer(tmp_path, first=0, allow_nonfinite=['ratio'])
  writer.add(3, {'ratio': jnp.float32(value), 'loss': 1.0})
  writer.add(4, {'ratio': 1.0, 'loss': jnp.float32(value)})
  with pytest.raises(FloatingPointError, match=rf'loss: {value} found at step 4'):
    writer.add(5, {'ratio': 1.0, 'loss': 2.0})
  writer.close()  # and is not raised again
  assert rows(tmp_path) == [
    {'step': 3, 'ratio': None, 'loss': 1.0},
    {'step': 4, 'ratio': 1.0, 'loss': None},
  ]


def test_an_average_of_nothing_is_left_out(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  writer.add(0, {'text': metrics.average(jnp.ones(3), jnp.zeros(3)), 'loss': 1.0})
  writer.close()
  assert rows(tmp_path) == [{'step': 0, 'loss': 1.0}]


def test_resumed_files_are_those_of_an_uninterrupted_run(tmp_path):
  def steps(workdir, first, last, closed):
    writer = writing.Writer(workdir, first=first)
    for step in range(first, last):
      if step == 5:
        writer.flush()  # what a loop does before it saves
      writer.add(step, values(step))
      writer.write_images(step, {'samples/train': image(step)})
    if closed:
      writer.close()

  steps(tmp_path / 'whole', 0, 10, closed=True)
  steps(tmp_path / 'cut', 0, 8, closed=False)  # rows to 6: the one of 7 was never fetched
  with (tmp_path / 'cut' / 'metrics.jsonl').open('ab') as file:
    file.write(b'{"step": 7, "lo\xc3')
  assert [row['step'] for row in writing.load(tmp_path / 'cut')] == list(range(7))
  steps(tmp_path / 'cut', 5, 10, closed=True)
  assert files(tmp_path / 'cut') == files(tmp_path / 'whole')


def test_half_a_line_is_dropped_and_a_whole_one_without_its_end_is_kept(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 0, "a": 1.0}\n{"step": 1, "a": 2.0}\n{"st')
  assert [row['a'] for row in writing.load(tmp_path)] == [1, 2]
  writing.Writer(tmp_path, first=2).close()
  assert (
    tmp_path / 'metrics.jsonl'
  ).read_bytes() == b'{"step": 0, "a": 1.0}\n{"step": 1, "a": 2.0}\n'

  (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 0, "a": 1.0}\n{"step": 1, "a": 2.0}')
  writer = writing.Writer(tmp_path, first=2)
  writer.write_scalars(2, {'a': 3})
  writer.close()
  assert [row['a'] for row in rows(tmp_path)] == [1, 2, 3]


def test_images_are_png_files_below_a_safe_name(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  writer.write_images(12, {'../eval/best': image(9)})
  writer.close()
  (path,) = tmp_path.rglob('*.png')
  assert path == tmp_path / 'images' / '_eval_best' / '00000012.png'
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image(9))


def test_tensorboard_gets_the_scalars_and_a_restart_keeps_earlier_events(tmp_path):
  for first in (0, 1):
    writer = writing.Writer(tmp_path, first=first)
    writer.add(first, values(first))
    writer.write_images(first, {'samples': image(1)})
    writer.close()
  events = sorted((tmp_path / 'tensorboard').iterdir())
  assert len(events) == 2
  for path in events:
    for word in (b'loss', b'reward/all', b'samples', b'PNG'):
      assert word in path.read_bytes()


def test_a_run_goes_on_without_tensorboard(tmp_path):
  (tmp_path / 'tensorboard').write_text('a file where the folder should be')
  with pytest.warns(UserWarning, match='no TensorBoard events from here on') as caught:
    writer = writing.Writer(tmp_path, first=0)
    for step in range(3):
      writer.add(step, values(step))
    writer.write_images(2, {'samples': image(1)})
    writer.close()
  assert len(caught) == 1
  assert len(rows(tmp_path)) == 3


def test_a_run_goes_on_without_tensorboardX_and_never_imports_tensorflow(tmp_path):
  code = f"""
import sys
sys.modules['tensorboardX'] = None
from vargrl import metrics
from vargrl.reporting import writer as writing
writer = writing.Writer({str(tmp_path)!r}, first=0)
writer.add(0, {{'loss': 1.0}})
writer.close()
assert 'tensorflow' not in sys.modules and 'clu.metric_writers' not in sys.modules
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('UserWarning: no TensorBoard events') == 1
  assert rows(tmp_path) == [{'step': 0, 'loss': 1.0}]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no file of a full disk here')
def test_a_full_disk_for_events_stops_nothing(tmp_path):
  writer = writing.Writer(tmp_path, first=0)
  # The real file of a full disk: every flush to it fails.
  writer._sinks['TensorBoard events'].events._py_recordio_writer._writer = open('/dev/full', 'wb')
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for step in range(12):
      writer.add(step, values(step))
      writer.flush()
    writer.close()
  assert sum('No space left' in str(w.message) for w in caught) == 1
  assert len(rows(tmp_path)) == 12
