"""What a reward function may do to its worker, and what it cannot do to the run."""

import contextlib
import dataclasses
import http.server
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vargrl.rewards import pool as pools
from vargrl.rewards.host_samples import HostSamples

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


@pytest.fixture(autouse=True)
def judges_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(HERE)


def open_pool(name, workers=1, timeout=30.0, retries=0, chunk=2, **options):
  return contextlib.closing(
    pools.Pool(name, options, workers=workers, timeout=timeout, retries=retries, chunk=chunk)
  )


def images(n):
  return np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3)


def samples(label_n, image_nyxc=None, group_size=1):
  """Rows of these labels, a number of rows for 0 .. n - 1."""
  label_n = np.arange(label_n) if isinstance(label_n, int) else np.asarray(label_n)
  image_nyxc = images(len(label_n)) if image_nyxc is None else image_nyxc
  record = [{'label': int(label)} for label in label_n]
  return HostSamples(image_nyxc, {}, record, np.arange(len(record)) // group_size)


def pids(pool):
  return [worker.process.pid for worker in pool.workers]


def gone(pid, within=0.0):
  """True when no process has this id, not even a zombie."""
  end = time.monotonic() + within
  while True:
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return True
    if time.monotonic() > end:
      return False
    time.sleep(0.02)


def ended(pid, within):
  """True when it is gone, or a zombie for which process 1 is to blame."""
  stat = pathlib.Path(f'/proc/{pid}/stat')
  return gone(pid, within) or (stat.exists() and ') Z ' in stat.read_text())


def failures(pool):
  return {k: v for k, v in pool.counts.items() if v}


def test_every_row_gets_its_own_score_whatever_the_chunks():
  with open_pool('judges.mean', workers=2, chunk=3) as pool:
    for n in (7, 1, 0, 8):
      r_B = pool.scores(samples(n))
      assert r_B.dtype == np.float32
      np.testing.assert_array_equal(r_B, images(n).mean((1, 2, 3)))
    assert failures(pool) == {}


def test_rows_are_shared_by_all_workers_but_no_call_has_more_than_a_chunk():
  with open_pool('judges.chunk_size', workers=2, chunk=3) as pool:
    assert pool.scores(samples(4)).tolist() == [2] * 4
    assert pool.scores(samples(7)).tolist() == [3, 3, 3, 3, 3, 3, 1]


def test_a_function_may_start_processes_of_its_own():
  with open_pool('judges.parallel', chunk=4) as pool:
    assert pool.scores(samples(4)).tolist() == [0, 1, 2, 3]
    assert failures(pool) == {}


def test_none_nan_and_inf_cost_one_row_each_and_are_counted():
  with open_pool('judges.holes', chunk=8) as pool:
    r_B = pool.scores(samples(6))
    np.testing.assert_array_equal(r_B, [0, np.nan, np.nan, np.nan, np.nan, 5])
    assert failures(pool) == {'nan': 4}
    pool.scores(samples(1))
    assert failures(pool) == {}  # counts are of the latest scores


@pytest.mark.parametrize('how', ['raise', 'exit', 'sigkill'])
def test_failing_once_costs_a_retry_and_no_row(how, tmp_path):
  with open_pool('judges.once', workers=2, retries=1, how=how, folder=str(tmp_path)) as pool:
    r_B = pool.scores(samples(4))
    np.testing.assert_array_equal(r_B, np.arange(4))
    assert failures(pool) == {'retry': 2}


def calls(log):
  """How many images each call was given, in order."""
  return [int(line) for line in log.read_text().split()]


@pytest.mark.parametrize('workers, n', [(1, 16), (2, 21)])
@pytest.mark.parametrize(
  'how, kind, error',
  [
    ('raise', 'error', 'RuntimeError: the service is away'),
    ('exit', 'death', 'exit code 3'),
    ('sigkill', 'death', 'exit code -9'),
  ],
)
def test_a_poisonous_image_costs_its_own_row_alone(how, kind, error, workers, n):
  bad = n - 5
  with open_pool('judges.poisoned', workers=workers, retries=1, chunk=16, how={bad: how}) as pool:
    before, r_B = pids(pool), pool.scores(samples(n))
    expected_B = images(n).mean((1, 2, 3)).astype(np.float32)
    expected_B[bad] = np.nan
    np.testing.assert_array_equal(r_B, expected_B)
    assert pool.counts[kind] == 1 and sum(pool.counts[k] for k in pools.KINDS) == 1
    assert error in pool.last_error
    if kind == 'death':
      assert pids(pool) != before  # replaced, and what died left no zombie
      assert all(gone(pid) for pid in set(before) - set(pids(pool)))


def test_guilty_rows_of_one_chunk_are_told_apart_and_counted_by_their_kinds():
  how = {2: 'raise', 3: 'exit', 9: 'text', 14: 'sigkill'}
  with open_pool('judges.poisoned', chunk=16, how=how) as pool:
    r_B = pool.scores(samples(16))
    assert np.flatnonzero(np.isnan(r_B)).tolist() == sorted(how)
    assert pool.counts['error'] == pool.counts['death'] == 2


def test_a_failing_chunk_is_tried_again_whole_and_each_of_its_halves_once(tmp_path):
  log = tmp_path / 'log'
  options = dict(how={1: 'raise'}, log=str(log))
  with open_pool('judges.poisoned', retries=2, chunk=8, **options) as pool:
    pool.scores(samples(16))
    assert calls(log) == [8, 8, 8, 8, 4, 2, 1, 1, 2, 4]
    assert failures(pool) == {'error': 1, 'retry': 2 + 2 * 3}
    assert 'RuntimeError: the service is away' in pool.last_error
    assert 'judges.py' in pool.last_error


@pytest.mark.parametrize(
  'how, error',
  [('raise', 'is away'), ('text', 'returned dtype <U4, expected real'), ('exit', 'code 3')],
)
def test_a_function_that_always_fails_ends_the_run_before_all_rows_are_tried(how, error, tmp_path):
  log, n = tmp_path / 'log', 64
  options = dict(how=dict.fromkeys(range(n), how), log=str(log))
  with open_pool('judges.poisoned', retries=1, chunk=16, **options) as pool:
    text = rf'(?s)reward judges.poisoned: no verdict for 4 of 64 .* allows 0\.05.*{error}'
    with pytest.raises(RuntimeError, match=text):
      pools.run([pool], samples(n), group_size=1, max_failed=0.05)
  each_chunk, once_more, two_a_row, down = 4, 1, 2 * 4, 2  # 'down' to the first single row
  assert len(calls(log)) <= each_chunk + once_more + two_a_row + down


def test_a_hang_costs_its_whole_chunk_and_one_timeout_a_try(tmp_path):
  log = tmp_path / 'log'
  options = dict(how={1: 'hang'}, log=str(log))
  with open_pool('judges.poisoned', timeout=1.0, retries=1, chunk=8, **options) as pool:
    start = time.monotonic()
    r_B = pool.scores(samples(16))
    assert 1.9 < time.monotonic() - start < 10
    assert np.isnan(r_B[:8]).all() and not np.isnan(r_B[8:]).any()
    assert failures(pool) == {'timeout': 8, 'retry': 1} and '1 s' in pool.last_error
    assert calls(log) == [8, 8, 8]


def test_a_half_that_hangs_is_lost_at_once_and_the_other_half_is_searched():
  options = dict(how={1: 'raise', 5: 'hang'})  # the first is met first
  with open_pool('judges.poisoned', timeout=1.0, chunk=8, **options) as pool:
    r_B = pool.scores(samples(8))
    assert np.flatnonzero(np.isnan(r_B)).tolist() == [1, 4, 5, 6, 7]
    assert failures(pool) == {'error': 1, 'timeout': 4, 'retry': 6}


def test_a_hanging_function_is_killed_with_what_it_started(tmp_path):
  file = tmp_path / 'pid'
  with open_pool('judges.hangs_with_a_child', timeout=1.0, file=str(file)) as pool:
    before, start = pids(pool), time.monotonic()
    assert np.isnan(pool.scores(samples(2))).all()
    assert 0.9 < time.monotonic() - start < 10
    assert failures(pool) == {'timeout': 2} and '1 s' in pool.last_error
    assert gone(before[0])
    assert ended(int(file.read_text()), within=2.0)


def test_a_worker_killed_or_stopped_while_idle_costs_no_row():
  with open_pool('judges.mean', workers=2, timeout=1.0, retries=1) as pool:
    os.kill(pids(pool)[0], signal.SIGKILL)
    os.kill(pids(pool)[1], signal.SIGSTOP)
    big = np.zeros((4, 512, 512, 3), np.uint8)  # more than a pipe holds
    assert pool.scores(samples(4, big)).tolist() == [0] * 4
    assert pool.counts['death'] == pool.counts['timeout'] == 0


@pytest.mark.parametrize(
  'name, message',
  [
    ('judges.meen', "judges has no 'meen'; did you mean 'mean'"),
    ('dies.f', r'the worker died \(exit code 7\) while importing it'),
    ('nowhere.f', "found no module 'nowhere' on sys.path"),
    ('__main__.f', 'workers have no __main__; put the function into a module'),
  ],
)
def test_a_pool_of_what_cannot_be_imported_is_an_error_before_any_image(name, message):
  with pytest.raises(ValueError, match=f'reward {name}: {message}'):
    pools.Pool(name, {}, workers=1, timeout=30, retries=0, chunk=2)


@pytest.mark.parametrize(
  'status, calls, kind', [(200, 2, ''), (500, 6, 'error'), (None, 2, 'timeout')]
)
def test_a_server_that_fails_or_is_silent_is_asked_a_bounded_number_of_times(status, calls, kind):
  """Two chunks of two images, no retry: a chunk that fails is asked once, and each of its rows once
  more.
  """
  asked = []

  class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      asked.append(len(self.rfile.read(int(self.headers['Content-Length']))))
      if status is None:
        time.sleep(5)
      self.send_response(status or 200)
      self.end_headers()
      self.wfile.write(b'[0.5, 0.25]')

    def log_message(self, *text):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/'
    with open_pool('judges.remote', timeout=2, url=url) as pool:
      scores = pool.scores(samples(4))
    server.shutdown()
  assert len(asked) == calls
  if kind:
    assert np.isnan(scores).all() and pool.counts[kind] == 4
  else:
    np.testing.assert_array_equal(scores, [0.5, 0.25, 0.5, 0.25])


def test_a_server_that_is_not_there_costs_the_rows_alone():
  with socket.socket() as s:  # bound and not listening: connections are refused
    s.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{s.getsockname()[1]}/'
    with open_pool('judges.remote', retries=1, url=url) as pool:
      assert np.isnan(pool.scores(samples(2))).all() and failures(pool) == {
        'error': 2,
        'retry': 3,
      }
      assert 'refused' in pool.last_error


def test_images_of_the_wrong_type_and_too_few_records_are_errors():
  with open_pool('judges.mean') as pool:
    with pytest.raises(ValueError, match=r'pictures float64 \(2, 2, 2, 3\) and 2 records found'):
      pool.scores(samples(2, images(2) / 255))
    with pytest.raises(ValueError, match='and 1 records found'):
      pool.scores(samples(1, images(2)))
    with pytest.raises(ValueError, match="1 of 'text' and 2 records found"):
      pool.scores(dataclasses.replace(samples(2), texts={'text': ['a']}))
    assert pool.scores(samples(1)).shape == (1,)  # the pool survives all


def test_after_an_error_no_stale_answer_is_taken_for_a_new_one():
  with open_pool('judges.raises_for', workers=2, bad=0, seconds=0.3) as pool:
    with pytest.raises(RuntimeError, match='no verdict for 1 of 8'):
      pools.run([pool], samples(8), group_size=1, max_failed=0.0)
    assert pool.scores(samples([1, 2])).tolist() == [1, 2]


def test_close_leaves_no_process_not_even_a_zombie():
  with open_pool('judges.mean', workers=2) as pool:
    workers = pids(pool)
    assert not any(map(gone, workers))
  assert all(map(gone, workers))
  with pytest.raises(ValueError, match='closed'):
    pool.scores(samples(1))


SCRIPT = """
import sys
import numpy as np
from vargrl.rewards import pool as pools
from vargrl.rewards.host_samples import HostSamples
print('main runs', flush=True)
pool = pools.Pool(sys.argv[1], {'how': 'hang'} if 'always' in sys.argv[1] else {},
                  workers=1, timeout=60, retries=0, chunk=2)
print(pool.workers[0].process.pid, flush=True)
rows = HostSamples(np.zeros((2, 4, 4, 3), np.uint8), {}, [{'label': 0}, {'label': 1}], np.arange(2))
print(pool.scores(rows), flush=True)
"""


def script(command, name, tmp_path, **kwargs):
  env = os.environ | {'PYTHONPATH': f'{HERE}{os.pathsep}{ROOT}', 'TMPDIR': str(tmp_path)}
  env['JAX_PLATFORMS'] = 'cpu'
  # What a shell starts in the background ignores Ctrl-C, and so would all that these tests start.
  kwargs['preexec_fn'] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  return subprocess.Popen([sys.executable, *command, name], env=env, **pipes, **kwargs)


@pytest.mark.parametrize('way', ['file', 'module', 'notebook'])
def test_workers_run_neither_main_nor_jax(way, tmp_path):
  """However it was started, and with no `if __name__ == '__main__'`; a notebook has no file."""
  program = 'import jax' + SCRIPT
  (tmp_path / 'program.py').write_text(program)
  command = {'file': ['program.py'], 'module': ['-m', 'program'], 'notebook': ['-c', program]}[way]
  process = script(command, 'judges.jax_is_here', tmp_path, cwd=tmp_path)
  out, err = process.communicate(timeout=60)
  ran, pid, scores = out.splitlines()
  assert (ran, scores, err) == ('main runs', '[0. 0.]', '')
  assert process.returncode == 0 and gone(int(pid), within=1.0)  # without close()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_a_hanging_worker_dies_with_its_parent_and_leaves_neither_word_nor_file(number, tmp_path):
  process = script(['-c', SCRIPT], 'judges.always', tmp_path, start_new_session=True)
  pid = int([process.stdout.readline() for _ in range(2)][1])
  while not list(tmp_path.glob('vargrl_rewards_*/*')):
    time.sleep(0.02)
  time.sleep(0.2)  # it hangs by now
  os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
  _, err = process.communicate(timeout=30)
  assert ended(pid, within=2.0)
  assert err.count('Traceback') == (number == signal.SIGINT)  # the parent's own
  assert list(tmp_path.iterdir()) == []
