"""The pickle inside a file of torch.save, read without torch and without running it.

A pickle is a program. pickletools takes it apart, and a small stack machine follows the
instructions that torch.save writes. It builds numbers, text, bytes, lists, tuples, dictionaries,
sets and tensors, and refuses everything else. Of the globals that a pickle can name it knows
torch_values.FUNCTIONS, the storages and the dtypes. What it builds is counted: a pickle can ask for
a thousand times its size by naming one of its values again and again. The format:
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import pickletools
import sys

from vargrl.checkpoint import torch_values
from vargrl.checkpoint.torch_values import Budget, exactly, shown

# What things take in memory: a place on the stack, an item of a list or tuple, an entry of a
# dictionary or set while it grows, an entry of the memo, a tensor or storage with its parts.
PLACE, ITEM, ENTRY, MEMO, TENSOR = 10, 8, 90, 130, 512


def call_function(function, args, budget):
  """Calls one of FUNCTIONS; errors name it. Their work is paid for before it is done."""
  functions = torch_values.FUNCTIONS
  if (
    type(function) is not torch_values.Global
    or function.name not in functions
    or type(args) is not tuple
  ):
    raise ValueError('a call of what is no function is refused')
  budget.charge(
    TENSOR + sum(ENTRY * len(x) if type(x) in (list, tuple) else sys.getsizeof(x) for x in args)
  )
  try:
    return functions[function.name](budget, *args)
  except ValueError as e:
    raise ValueError(f'{function.name}: {e}') from e
  except (TypeError, OverflowError) as e:
    raise ValueError(
      f'{function.name} is given odd arguments ({shown(str(e), 120)}); download it again'
    ) from e


def extend(stack, items, budget):
  """Appends items to the list on top of the stack."""
  budget.charge(ITEM * len(items) * 9 // 8)
  exactly(stack[-1], list).extend(items)


def update(stack, items, budget):
  """Writes items, keys and values in turn, to the dictionary on top of the stack."""
  if len(items) % 2:
    raise ValueError('damaged, a key without a value; download it again')
  grow(
    exactly(stack[-1], dict),
    ((budget.key(k), v) for k, v in zip(items[::2], items[1::2])),
    len(items) // 2,
    budget,
  )


def grow(entries, items, count, budget):
  """Adds `count` items to a dictionary or set; of those that it had, nothing is charged."""
  before = len(entries)
  budget.charge(ENTRY * count)
  entries.update(items)
  budget.charge(ENTRY * (len(entries) - before - count))


def make(kind, stack, items, budget):
  """Pushes a tuple or list of the items."""
  budget.charge(ITEM * len(items))
  stack.append(kind(items))


def build(stack):
  """Drops the attributes of an object; those of a state dict are the versions of its modules."""
  exactly(stack.pop(), dict)
  exactly(stack[-1], dict)


def frozen(stack, items, budget):
  """Pushes a frozenset of the items."""
  budget.charge(ENTRY * len(items))
  stack.append(frozenset(map(budget.key, items)))


# What the instructions do: OPERANDS push their operand, CONSTANTS a new value, ITEM_ACTIONS take
# the items above the mark, STACK_ACTIONS change the stack. All others are refused, among them those
# that make objects (NEWOBJ, INST, OBJ, EXT).
OPERANDS = {
  'BININT',
  'BININT1',
  'BININT2',
  'LONG1',
  'LONG4',
  'BINFLOAT',
  'BINUNICODE',
  'SHORT_BINUNICODE',
  'BINUNICODE8',
  'BINBYTES',
  'SHORT_BINBYTES',
  'BINBYTES8',
}
CONSTANTS = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
  'EMPTY_SET': set,
}
ITEM_ACTIONS = {
  'TUPLE': lambda stack, items, budget: make(tuple, stack, items, budget),
  'LIST': lambda stack, items, budget: make(list, stack, items, budget),
  'FROZENSET': frozen,
  'DICT': lambda stack, items, budget: (stack.append({}), update(stack, items, budget)),
  'APPENDS': extend,
  'SETITEMS': update,
  'ADDITEMS': lambda stack, items, budget: grow(
    exactly(stack[-1], set), map(budget.key, items), len(items), budget
  ),
  'POP_MARK': lambda stack, items, budget: None,
}
STACK_ACTIONS = {
  'TUPLE1': lambda stack, budget: stack.append(pop_items(stack, 1)),
  'TUPLE2': lambda stack, budget: stack.append(pop_items(stack, 2)),
  'TUPLE3': lambda stack, budget: stack.append(pop_items(stack, 3)),
  'APPEND': lambda stack, budget: extend(stack, pop_items(stack, 1), budget),
  'SETITEM': lambda stack, budget: update(stack, pop_items(stack, 2), budget),
  'STACK_GLOBAL': lambda stack, budget: stack.append(
    torch_values.resolve_global('.'.join(exactly(x, str) for x in pop_items(stack, 2)))
  ),
  'REDUCE': lambda stack, budget: stack.append(call_function(*pop_items(stack, 2), budget)),
  'BUILD': lambda stack, budget: build(stack),
  'POP': lambda stack, budget: stack.pop(),
}
# Whose result is a new object of a size of its own.
MAKERS = {*OPERANDS, *CONSTANTS, 'TUPLE1', 'TUPLE2', 'TUPLE3', 'REDUCE'}


def pop_items(stack, count):
  """Removes `count` items from the stack and returns them, the topmost last."""
  if len(stack) < count:
    raise IndexError('the stack is too short')
  items = tuple(stack[-count:])
  del stack[-count:]
  return items


def instructions(code):
  """Yields (name, operand) of each instruction, up to STOP."""
  try:
    for op, operand, _ in pickletools.genops(code):
      yield op.name, operand
  except ValueError as e:
    raise ValueError(
      f'damaged, its pickle cannot be taken apart ({shown(str(e), 80)}); download it again'
    ) from e


def own_size(value):
  """Bytes of a new value; small integers, None and the like are there already."""
  if value is None or type(value) is bool or (type(value) is int and -6 < value < 257):
    return 0
  return sys.getsizeof(value)


def run(code, load_storage, size):
  """The value of a pickle, given as bytes.

  load_storage: persistent id -> Storage. size: of the file that it is in, which bounds what the
  pickle may cost, see Budget. Raises ValueError for instructions and globals that are refused; a
  damaged pickle may raise any other exception too.
  """
  stack, marks, memo, budget = [], [], {}, Budget(size)
  for name, operand in instructions(code):
    before = len(stack)
    if name in OPERANDS:
      stack.append(operand)
    elif name in CONSTANTS:
      stack.append(CONSTANTS[name]())
    elif name in STACK_ACTIONS:
      STACK_ACTIONS[name](stack, budget)
    elif name == 'MARK':
      budget.charge(TENSOR)
      marks.append(stack)
      stack = []
      continue
    elif name in ITEM_ACTIONS:
      items, stack = stack, marks.pop()
      before += len(stack)
      ITEM_ACTIONS[name](stack, items, budget)
      budget.charge(-TENSOR)  # of the mark
    elif name in ('BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      budget.charge(MEMO)
      memo[len(memo) if name == 'MEMOIZE' else operand] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[operand])
    elif name == 'GLOBAL':
      budget.charge(TENSOR)
      stack.append(torch_values.resolve_global(operand.replace(' ', '.')))
    elif name == 'BINPERSID':
      budget.charge(TENSOR)
      stack.append(load_storage(stack.pop()))
    elif name == 'STOP':
      return stack.pop()
    elif name not in ('PROTO', 'FRAME'):
      raise ValueError(f'holds the instruction {name}, which is refused; {torch_values.SAVE_AGAIN}')
    budget.charge(PLACE * (len(stack) - before) + (own_size(stack[-1]) if name in MAKERS else 0))
  raise ValueError('damaged, its pickle has no end; download it again')
