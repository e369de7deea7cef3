"""Runs mutants of mutations.py in a child process that is started again when one ends it."""

import argparse
import collections
import json
import os
import pathlib
import select
import subprocess
import sys
import time

SECONDS = 20  # of one mutant
STARTING = 120  # of a child
BUSY = 10  # times as long as it computes a mutant may take
GOOD = ('read', 'refused')
HERE = pathlib.Path(__file__).parent
CHILD = HERE / 'fuzz_child.py'
# One arena and one thread: each would reserve addresses, which are what is bounded.
ENVIRONMENT = {
  'MALLOC_ARENA_MAX': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'RAYON_NUM_THREADS': '1',
  'TOKENIZERS_PARALLELISM': 'false',
  'JAX_PLATFORMS': 'cpu',
}


class Child:
  """A process that reads mutants."""

  def __init__(self):
    path = os.pathsep.join(map(str, (HERE, HERE.parent / 'golden')))
    self.process = subprocess.Popen(
      [sys.executable, str(CHILD)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, **ENVIRONMENT, 'PYTHONPATH': path},
    )
    self.ready = False

  def ask(self, seed):
    """The dictionary that the child answers; how: 'time' or 'crash' if it does not."""
    self.process.stdin.write(f'{seed}\n'.encode())
    self.process.stdin.flush()
    if not self.ready:
      self.ready = bool(self.answer(STARTING))
    began = self.seconds()
    line = self.answer(SECONDS)
    for _ in range(BUSY):  # of a machine that does other things too
      if line is not None or self.seconds() - began > SECONDS:
        break
      line = self.answer(SECONDS)
    if line:
      answer = json.loads(line)
      return answer | ({'how': 'time'} if answer['seconds'] > SECONDS else {})
    seconds = 0.0 if line == b'' else self.seconds() - began
    self.close()
    how = 'crash' if line == b'' else 'time'
    return {'kind': '?', 'how': how, 'said': f'exit {self.process.returncode}', 'seconds': seconds}

  def seconds(self):
    """The time that the child has computed for."""
    stat = pathlib.Path(f'/proc/{self.process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf('SC_CLK_TCK')

  def answer(self, seconds):
    """The next line that the child writes; b'' if it ends, None if it takes longer."""
    ready, _, _ = select.select([self.process.stdout], [], [], seconds)
    return self.process.stdout.readline() if ready else None

  def close(self):
    self.process.kill()
    self.process.wait()


def run(count, seed, say=lambda line: None):
  """({(kind, how): number}, [(seed, answer) of those that ended otherwise than in GOOD])."""
  counts, wrong, child = collections.Counter(), [], None
  try:
    for number in range(seed * 10**7, seed * 10**7 + count):
      child = child or Child()
      answer = child.ask(number)
      counts[answer['kind'], answer['how']] += 1
      if answer['how'] not in GOOD:
        wrong.append((number, answer))
        say(f'{number}: {answer}')
      if child.process.returncode is not None:
        child = None
  finally:
    if child:
      child.close()
  return counts, wrong


def table(counts):
  """Lines of the counts: a row for each kind of file, a column for each way to end."""
  kinds = sorted({kind for kind, _ in counts})
  ways = [*GOOD, *sorted({how for _, how in counts} - {*GOOD})]
  rows = [['', *ways, 'all']]
  for kind in kinds:
    numbers = [counts[kind, how] for how in ways]
    rows.append([kind, *map(str, numbers), str(sum(numbers))])
  totals = [sum(counts[kind, how] for kind in kinds) for how in ways]
  rows.append(['all', *map(str, totals), str(sum(totals))])
  return '\n'.join(' '.join(f'{x:>12}' for x in row) for row in rows)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  began = time.perf_counter()
  counts, _ = run(flags.count, flags.seed, say=lambda line: print(line, flush=True))
  print(table(counts))
  print(f'{flags.count} files in {time.perf_counter() - began:.0f} s')
