"""What a compiled program says about itself: collectives by kind and bytes, loops counted as often as they run."""
import collections
import math
import re

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
         'u64': 8, 'f64': 8}
HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{\s*$')
OPERATION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(')
CALLED = re.compile(r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')


def collectives(text):
  """{kind: (count, bytes that each device holds of the results)} of one run of the program `text` (HLO).

  An operation in a loop counts as often as the loop runs where the compiler knows how often, else once. Of an
  asynchronous pair only the start counts, and of what it returns only the result.
  """
  found, calls, entry = computations(text)
  times = collections.Counter()

  def visit(name, factor):
    times[name] += factor
    for called, trips in calls.get(name, ()): visit(called, factor * trips)
  visit(entry, 1)
  total = {}
  for name, factor in times.items():
    for kind, size in found.get(name, ()):
      count, held = total.get(kind, (0, 0))
      total[kind] = count + factor, held + factor * size
  return dict(sorted(total.items()))


def computations(text):
  """({name: [(kind, bytes)]}, {name: [(called, times)]}, name of the entry)."""
  found, calls, entry, name = {}, {}, None, None
  for line in text.splitlines():
    if head := HEAD.match(line):
      name = head[2]
      entry = name if head[1] else entry
    elif operation := OPERATION.match(line):
      shape, word = operation.groups()
      kind = word.removesuffix('-start')
      if kind in KINDS: found.setdefault(name, []).append((kind, result_bytes(shape, word.endswith('-start'))))
      trips = int(m[1]) if word == 'while' and (m := TRIPS.search(line)) else 1
      for called in CALLED.findall(line): calls.setdefault(name, []).append((called, trips))
      if branches := re.search(r'branch_computations=\{([^}]*)\}', line):
        calls.setdefault(name, []).extend((b.strip().lstrip('%'), 1) for b in branches[1].split(','))
  return found, calls, entry


def result_bytes(shape, started):
  """Bytes of an HLO shape, a tuple's summed; `started`: a tuple of operands and results, of which the results."""
  sizes = [BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(',') if n)
           for kind, dims in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape)]
  if not started or len(sizes) < 2: return sum(sizes)
  sizes = [size for size in sizes if size > 4] or sizes  # context tokens aside
  return sum(sizes[len(sizes) // 2:])
