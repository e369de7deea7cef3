"""Counts of a compiled program, from its HLO text: arithmetic, collectives and large arrays.

What is in a loop counts as often as the loop runs.
"""

import collections
import functools
import math
import re
from typing import NamedTuple

from vargrl.io import text as io_text

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
DTYPE_BYTES = {
  'token': 0,
  's4': 0.5,
  'u4': 0.5,
  'pred': 1,
  's8': 1,
  'u8': 1,
  'f8e4m3fn': 1,
  'f8e4m3b11fnuz': 1,
  'f8e5m2': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
  'c64': 8,
  'c128': 16,
}
# How the name of a call of the kernel in models/layers/splash.py begins. The program's text does
# not contain the kernel's arithmetic.
SPLASH_KERNEL = '%splash_'
COMPUTATION_START = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{\s*$')
OPERATION_LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
CALLEE = re.compile(r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
# The kinds of operations whose results are not likely to be fused with others.
UNFUSED_KINDS = (
  'dot',
  'convolution',
  'sort',
  'gather',
  'scatter',
  'concatenate',
  'dynamic-update-slice',
  'pad',
)
TRIP_COUNT = re.compile(r'known_trip_count[^0-9]*(\d+)')


class Operation(NamedTuple):
  """One line of HLO, `%name = shape kind(arguments), attributes`; rest: the line after `kind(`."""

  name: str
  shape: str
  kind: str
  rest: str

  @property
  def operands(self):
    """The names of the operations that this one reads."""
    return re.findall(r'%([\w.\-]+)', re.split(r'\)(?:, |$)', self.rest, maxsplit=1)[0])

  @property
  def scope(self):
    """The place in the source that the operation comes from, '' if it is not recorded.

    Such as jit(update)/jvp()/while/body/rematted_computation/head/dot_general.
    """
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''


class Program(NamedTuple):
  """A compiled program.

  computations: {name of a computation: {name of an operation: Operation}}. run_counts: {name of a
  computation: how often it runs in one run of the program}. devices: the number of devices.
  """

  computations: dict
  run_counts: dict
  devices: int


def parse(text):
  """The Program of an HLO text as compilers print it.

  A loop whose trip count is not known counts once.
  """
  computations, name, entry = {}, None, None
  for line in io_text.split_lines(text):
    if head := COMPUTATION_START.match(line):
      name = head[2]
      computations[name] = {}
      entry = name if head[1] else entry
    elif name and (found := OPERATION_LINE.match(line)):
      computations[name][found[1]] = Operation(*found.groups())
  run_counts = collections.Counter()

  def visit(name, factor):
    run_counts[name] += factor
    for operation in computations.get(name, {}).values():
      trips = trip_count(operation, computations) if operation.kind == 'while' else 1
      called = CALLEE.findall(operation.rest)
      if branches := re.search(r'branch_computations=\{([^}]*)\}', operation.rest):
        called += [b.strip().lstrip('%') for b in branches[1].split(',')]
      for other in called:
        visit(other, factor * trips)

  visit(entry, 1)
  count = re.search(r'num_partitions=(\d+)', text)
  return Program(computations, dict(run_counts), int(count[1]) if count else 1)


def trip_count(loop, computations):
  """How often a while loop runs; 1 if it cannot be known.

  The compiler's known_trip_count if there is one. Otherwise the loop is taken to count from 0 to
  the constant that its condition compares with, in steps of the constant that its body adds.
  """
  if found := TRIP_COUNT.search(loop.rest):
    return int(found[1])
  condition, body = (
    computations.get(found[1], {})
    if (found := re.search(rf'{word}=%?([\w.\-]+)', loop.rest))
    else {}
    for word in ('condition', 'body')
  )
  limits = [n for n in map(int_constant, condition.values()) if n is not None]
  at = [
    found[1]
    for operation in condition.values()
    if operation.kind == 'get-tuple-element'
    and (found := re.search(r'index=(\d+)', operation.rest))
  ]
  if len(limits) != 1 or len(at) != 1:
    return limits[0] if len(limits) == 1 else 1
  root = list(body.values())[-1] if body else None
  following = body.get(root.operands[int(at[0])]) if root and root.kind == 'tuple' else None
  steps = (
    [int_constant(body.get(name)) for name in following.operands]
    if following and following.kind == 'add'
    else []
  )
  return -(-limits[0] // next((n for n in steps if n), 1))


def int_constant(operation):
  """The value of an int32 or uint32 constant; None for any other operation."""
  if not operation or operation.kind != 'constant' or not re.match(r'[su]32\[\]', operation.shape):
    return None
  found = re.match(r'(\d+)\)', operation.rest)
  return int(found[1]) if found else None


def collectives(program):
  """{kind: (count, bytes that each device sends)} of one run of the program.

  The bytes are those of a ring algorithm, the best known for each kind. An asynchronous collective
  may be printed as several operations; they have the same channel and count once.
  """
  seen, total = set(), {}
  for name, factor in program.run_counts.items():
    for operation in program.computations.get(name, {}).values():
      kind = operation.kind.removesuffix('-start')
      if kind not in COLLECTIVES:
        continue
      channel = re.search(r'channel_id=(\d+)', operation.rest)
      if channel and (kind, channel[1]) in seen:
        continue
      if channel:
        seen.add((kind, channel[1]))
      count, sent = total.get(kind, (0, 0))
      size = result_bytes(
        operation.shape, operation.kind in ('all-gather-start', 'collective-permute-start')
      )
      total[kind] = (
        count + factor,
        sent + factor * ring_bytes(kind, size, group_size(operation.rest, program.devices)),
      )
  return dict(sorted((kind, (count, round(sent))) for kind, (count, sent) in total.items()))


def ring_bytes(kind, size, n):
  """Bytes that each of n devices sends in a collective whose result has `size` bytes on each."""
  return (
    size
    * {
      'all-gather': (n - 1) / n,
      'all-reduce': 2 * (n - 1) / n,
      'reduce-scatter': n - 1,
      'all-to-all': (n - 1) / n,
      'collective-permute': 1,
    }[kind]
  )


def group_size(rest, devices):
  """The number of devices in one group of a collective; rest: of its Operation."""
  if mesh := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', rest):
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  if lists := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return len(lists[1].split(','))
  if grid := re.search(r'replica_groups=\[\d+,(\d+)\]', rest):
    return int(grid[1])
  return devices


def flops(program, by=lambda scope: ''):
  """{by(scope): FLOPs} of one device in one run: exactly those of matrix products and convolutions.

  A multiply-add is 2 FLOPs. Multiplications with padding, around or between the numbers of an
  operand, do not count. by: groups the operations by the scope they come from.
  """
  total = collections.Counter()
  for name, factor in program.run_counts.items():
    operations = program.computations.get(name, {})
    for operation in operations.values():
      if operation.kind == 'dot':
        count = dot_flops(operation, operations)
      elif operation.kind == 'convolution':
        count = convolution_flops(operation, operations)
      else:
        continue
      total[by(operation.scope)] += factor * count
  return dict(total)


def dot_flops(operation, operations):
  """FLOPs of a matrix product; operations: those of its computation, by name."""
  left = dims(operations[operation.operands[0]].shape)
  contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', operation.rest)
  inner = [left[int(i)] for i in contracted[1].split(',') if i] if contracted else []
  return 2 * math.prod(dims(operation.shape)) * math.prod(inner)


def convolution_flops(operation, operations):
  """FLOPs of a convolution without padding; operations: those of its computation, by name."""
  left, right = (dims(operations[name].shape) for name in operation.operands[:2])
  lhs, rhs, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', operation.rest).groups()
  result = dims(operation.shape)
  window = re.search(r'window=\{([^}]*)\}', operation.rest)
  options = dict(re.findall(r'(\w+)=(\S+)', window[1])) if window else {}
  count = 2 * result[out.index('b')] * result[out.index('f')] * right[rhs.index('i')]
  for i in range(len(out) - 2):
    axis = lambda key, default, i=i: options[key].split('x')[i] if key in options else default
    low, high = map(int, axis('pad', '0_0').split('_'))
    count *= kernel_overlaps(
      left[lhs.index(str(i))],
      right[rhs.index(str(i))],
      result[out.index(str(i))],
      int(axis('stride', 1)),
      low,
      int(axis('lhs_dilate', 1)),
      int(axis('rhs_dilate', 1)),
    )
  return count


@functools.cache
def kernel_overlaps(size, kernel, out, stride, low, lhs_dilate, rhs_dilate):
  """The number of products of a kernel's and an operand's numbers along one axis."""
  places = (o * stride - low + k * rhs_dilate for o in range(out) for k in range(kernel))
  return sum(0 <= at <= (size - 1) * lhs_dilate and at % lhs_dilate == 0 for at in places)


def largest_arrays(program, n, kinds=None):
  """[(bytes, 'shape scope')] of the n largest arrays that operations outside of fusions write.

  Arrays of one shape and one scope are listed once. kinds: only results of these kinds of
  operations; UNFUSED_KINDS for a program that is not optimised yet.
  """
  inner = {
    name
    for operations in program.computations.values()
    for operation in operations.values()
    if operation.kind in ('fusion', 'reduce', 'custom-call')
    for name in CALLEE.findall(operation.rest)
  }
  found = {}
  for name in program.run_counts.keys() - inner:
    for operation in program.computations.get(name, {}).values():
      if (
        operation.kind in ('parameter', 'bitcast', 'tuple', 'get-tuple-element', 'while')
        or operation.shape[0] == '('
      ):
        continue
      if kinds and operation.kind not in kinds:
        continue
      key = operation.shape.split('{')[0], operation.scope
      found[key] = result_bytes(operation.shape, False)
  return [(size, ' '.join(key)) for key, size in sorted(found.items(), key=lambda kv: -kv[1])[:n]]


def dims(shape):
  """'bf16[2,16]{1,0}' -> (2, 16)."""
  return tuple(int(n) for n in re.search(r'\[([\d,]*)\]', shape)[1].split(',') if n)


def result_bytes(shape, is_start):
  """Bytes of an HLO shape, summed over a tuple.

  is_start: the shape is that of an asynchronous start, a tuple of operands and results; only the
  results count.
  """
  sizes = [
    DTYPE_BYTES[kind] * math.prod(int(n) for n in sides.split(',') if n)
    for kind, sides in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', shape)
  ]
  if not is_start or len(sizes) < 2:
    return sum(sizes)
  sizes = [size for size in sizes if size > 4] or sizes  # without the context's tokens
  return sum(sizes[len(sizes) // 2 :])
