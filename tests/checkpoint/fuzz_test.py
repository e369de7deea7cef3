"""Files that are wrong in any way are read, or refused in a sentence: nothing else happens.

Nothing is executed, no other error comes, and memory and time stay within their bounds."""

import fuzz_child
import fuzz_run
import mutations
import pytest


def check(count, seed):
  counts, wrong = fuzz_run.run(count, seed)
  assert not wrong, f'{wrong[:5]}\n{fuzz_run.table(counts)}'
  kinds = {kind for kind, _ in counts}
  assert kinds == {'clip', 'index', 'pth', 'safetensors', 'tokenizer'}
  return counts


def test_a_hundred_and_fifty_wrong_files_are_read_or_refused():
  counts = check(150, seed=1)
  assert sum(counts.values()) == 150
  assert all(sum(n for (_, way), n in counts.items() if way == how) for how in fuzz_run.GOOD)


@pytest.mark.slow
def test_thousands_of_wrong_files_are_read_or_refused():
  counts = check(4000, seed=3)
  for kind in ('clip', 'index', 'pth', 'safetensors', 'tokenizer'):
    assert counts[kind, 'read'] and counts[kind, 'refused']


def test_the_originals_are_read_and_a_seed_always_gives_the_same_file(tmp_path):
  kinds = mutations.originals(tmp_path)
  counts = [
    fuzz_child.attempt(kinds, tmp_path / 'x', seed)['how']
    for seed in range(-sum(map(len, kinds.values())), 0)
  ]
  assert counts.count('read') > len(counts) // 2 and {*counts} <= {'read', 'refused'}
  for seed in range(20):
    assert mutations.mutant(kinds, seed) == mutations.mutant(kinds, seed)


def test_what_must_not_happen_is_seen(tmp_path, monkeypatch):
  """Readers that do it in the place of the library's, one for each seed."""
  codes = {
    'pass': 'read',
    "raise ValueError(f'{folder}: x')": 'refused',
    "open(folder / 'new', 'w').close()": 'executed',
    "os.system('true')": 'executed',
    'import this': 'executed',
    'bytearray(2**30)': 'memory',
    '[][0]': 'traceback',
    "raise ValueError('names nothing')": 'traceback',
    'os.abort()': 'crash',
    'while True: pass': 'time',
  }
  (tmp_path / 'child.py').write_text(
    'import os, fuzz_child\n'
    f'codes = {[*codes]}\n'
    'attempt = fuzz_child.attempt\n'
    'def other(kinds, folder, seed):\n'
    "  code = codes[seed % 10**7] if seed >= 0 else 'pass'\n"
    "  fuzz_child.read = lambda kind, folder: exec(code, {'os': os, 'folder': folder})\n"
    '  return attempt(kinds, folder, seed)\n'
    'fuzz_child.attempt = other\n'
    'fuzz_child.main()\n'
  )
  monkeypatch.setattr(fuzz_run, 'CHILD', tmp_path / 'child.py')
  monkeypatch.setattr(fuzz_run, 'STARTING', 20)
  monkeypatch.setattr(fuzz_run, 'SECONDS', 1)
  said = []
  counts, wrong = fuzz_run.run(len(codes), 1, say=said.append)
  bad = [how for how in codes.values() if how not in fuzz_run.GOOD]
  assert [answer['how'] for _, answer in wrong] == bad, said
  assert sum(counts.values()) == len(codes) and '?' in fuzz_run.table(counts)
