"""Chat templates: Jinja, as transformers runs it, with a bound on what a template may cost.

A template is a program from elsewhere. It runs in Jinja's sandbox, and a Meter counts what it makes
and how often it goes round: a loop takes a step per item, a macro or method one per call, and each
text, list and dictionary that it makes counts with all that is in it. What could be much larger
than what it is made of (`'a' * n`, center, replace, join, format ...) is weighed before it is made.
"""

import contextlib
import contextvars
import datetime
import functools
import json
import re

import jinja2
from jinja2 import ext, nodes, sandbox, visitor
from jinja2.utils import Namespace

MAX_SOURCE = 100_000  # characters of a template
# Of a rendering: what it makes in all, in characters and values, and what goes into it counts more.
MAX_WEIGHT = 2**25
MAX_TEXT = 2**19  # characters of its text, which a tokenizer needs 300 bytes each for
STEP = 64  # what a step of a loop counts, at least
NODE, ITEM = 4, 8  # what a value counts in another, and an item that a filter goes through
MAX_DIGITS = 4096  # bits of an integer
# Functions, methods and filters whose result may be larger than all that they are given.
GROWING = frozenset(
  'batch center expandtabs format indent ljust pprint rjust slice sum tojson urlencode urlize'
  ' wordwrap xmlattr zfill'.split()
)
# Methods that no template needs, and globals: of these, lipsum makes texts of any length.
REFUSED = frozenset(('encode', 'decode', 'translate', 'maketrans', 'format_map'))
METER = contextvars.ContextVar('meter')


class Costly(jinja2.exceptions.TemplateRuntimeError):
  """A template would cost more than it may."""


class Meter:
  """What a rendering has made so far.

  given: the weight of what goes into it; most: what it may make."""

  def __init__(self, given, messages=0):
    self.used, self.largest, self.most = 0, given, MAX_WEIGHT + given * (STEP + messages)

  def check(self, weight):
    """Raises Costly if `weight` more would be too much."""
    if self.used + weight > self.most:
      raise Costly(f'it makes more than {self.most} characters and values')

  def charge(self, weight):
    """Counts what has been made."""
    self.check(weight)
    self.used += weight
    self.largest = max(self.largest, weight)

  def step(self, count=1):
    """Counts steps; each may do something with the largest text that there is."""
    self.check(count * (STEP + self.largest // 1024))
    self.used += count * (STEP + self.largest // 1024)

  def weigh(self, value):
    """Counts a value with all that is in it, as often as it is in it; returns the value."""
    self.charge(weight(value, self.most - self.used))
    return value


def weight(value, most=float('inf')):
  """Characters and values in a value, counted until they are more than `most`."""
  total, left = 0, [value]
  while left and total + len(left) <= most:
    x = left.pop()
    total += NODE
    if isinstance(x, (str, bytes, range)):
      total += len(x)
    elif isinstance(x, int):
      total += x.bit_length() // 8
    elif isinstance(x, (list, tuple)):
      if len(x) > most:
        return len(x)
      left.extend(x)
    elif isinstance(x, dict):
      if len(x) > most:
        return len(x)
      left.extend(x)
      left.extend(x.values())
  return total + len(left)


def growth(name, value, args):
  """At least what function or filter `name` makes of a value, 0 if that cannot be much more."""
  if name == 'replace' and len(args) > 1:
    text, old, new = str(value), str(args[0]), str(args[1])
    return len(text) + (len(text) + 1 if not old else text.count(old)) * len(new)
  if name == 'join':
    # As a method the value goes between the items, as a filter the first argument.
    items, between = (args[0], value) if isinstance(value, str) and args else (value, args)
    count = len(items) if hasattr(items, '__len__') else 0
    return weight(items) + count * weight(between)
  if name not in GROWING:
    return 0
  numbers = [abs(x) for x in args if isinstance(x, int)]
  for text in (value, *args):
    if isinstance(text, str) and name in ('format', '%'):
      numbers += [int(x) for x in re.findall(r'\d{1,9}', text)]
  return (1 + weight(value)) * (1 + sum(numbers) + sum(map(weight, args)))


def check_call(name, value, args):
  """Raises Costly if a function or filter would make too much of what it is given."""
  meter = METER.get()
  if any(isinstance(x, int) and abs(x) > 10**6 for x in args):
    raise Costly(f'it calls {name} with a number beyond {10**6}')
  if name == 'sum' and any(not isinstance(x, (int, float, str)) for x in args):
    raise Costly('it adds what is no number')  # lists, each time a longer one
  meter.check(growth(name, value, args))


def metered(name, function):
  """A filter that weighs before and after; jinja2's marks on it are kept."""

  @functools.wraps(function)
  def call(*args, **kwargs):
    first = 1 if getattr(function, 'jinja_pass_arg', None) else 0
    value, rest = args[first], args[first + 1 :]
    check_call(name, value, (*rest, *kwargs.values()))
    args = *args[:first], passed(value), *rest
    return METER.get().weigh(function(*args, **kwargs))

  return call


def passed(value):
  """What a filter goes through, each item of which is counted."""
  meter = METER.get()
  if hasattr(value, '__next__'):
    return (meter.charge(ITEM) or item for item in value)
  if hasattr(value, '__len__') and not isinstance(value, str):
    meter.charge(ITEM * len(value))
  return value


def counted(items):
  """The items that a loop goes through, as a list, each a step."""
  meter, out = METER.get(), []
  if hasattr(items, '__len__'):
    meter.step(len(items))
    return items if isinstance(items, (list, tuple)) else [*items]
  for item in items:
    meter.step()
    out.append(item)
  return out


def concatenated(values):
  """The text of values one after the other."""
  meter = METER.get()
  parts = [text_of(value) for value in values]
  meter.charge(sum(map(len, parts)))
  return ''.join(parts)


def text_of(value):
  """The text of a value, which is weighed before."""
  if not isinstance(value, str):
    METER.get().charge(weight(value, METER.get().most))
  return str(value)


def finalize(value):
  """What is written of a value."""
  value = text_of(value)
  METER.get().charge(len(value))
  return value


class Weighing(visitor.NodeTransformer):
  """Lets loops count their items, and what makes texts, lists and dictionaries weigh them."""

  def visit_For(self, node):
    self.generic_visit(node)
    node.iter = filtered(node.iter, 'counted')
    return node

  def visit_Concat(self, node):
    self.generic_visit(node)
    return filtered(nodes.List(node.nodes, lineno=node.lineno), 'concatenated')

  def visit_List(self, node):
    return filtered(self.generic_visit(node), 'weighed')

  visit_Dict = visit_List

  def visit_Tuple(self, node):
    return self.visit_List(node) if node.ctx == 'load' else self.generic_visit(node)


def filtered(node, name):
  """A node, passed through a filter."""
  return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Generation(ext.Extension):
  """{% generation %} ... {% endgeneration %}: what the assistant says, written as it is."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    return nodes.CallBlock(self.call_method('write'), [], [], body).set_lineno(line)

  def write(self, caller):
    return caller()


class PlainNamespace(Namespace):
  """namespace() without a text of what it holds, which may be itself."""

  def __repr__(self):
    return '<Namespace>'

  __str__ = __repr__


class Environment(sandbox.ImmutableSandboxedEnvironment):
  """The sandbox, with a meter at all that calls, adds or makes."""

  intercepted_binops = frozenset(('+', '*', '**', '%'))

  def _parse(self, *args):
    return Weighing().visit(super()._parse(*args))

  def is_safe_attribute(self, obj, attr, value):
    return attr not in REFUSED and super().is_safe_attribute(obj, attr, value)

  def wrap_str_format(self, value):
    if getattr(value, '__name__', '') in REFUSED and isinstance(value.__self__, str):
      raise jinja2.exceptions.SecurityError(f'access to {value.__name__} is unsafe')
    return super().wrap_str_format(value)

  def getitem(self, obj, argument):
    found = super().getitem(obj, argument)
    return METER.get().weigh(found) if isinstance(argument, slice) else found

  def call_binop(self, context, operator, left, right):
    meter = METER.get()
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == '*' and not numbers:
      count = next((x for x in (left, right) if isinstance(x, int)), 1)
      meter.check(max(count, 0) * max(weight(left), weight(right)))
    elif operator == '%' and isinstance(left, str):
      args = right if isinstance(right, tuple) else (right,)
      if '*' in left or re.search(r'\d{4}', left):
        raise Costly('it formats with a width beyond 999')
      meter.check(1000 * left.count('%') + (1 + left.count('%')) * weight(args))
    elif operator == '+':
      meter.check(0 if numbers else weight(left) + weight(right))
    elif numbers:
      bits = left.bit_length() * max(right, 1) if operator == '**' else left.bit_length()
      if bits + right.bit_length() > MAX_DIGITS:
        raise Costly(f'it makes an integer of more than {MAX_DIGITS} bits')
    return meter.weigh(super().call_binop(context, operator, left, right))

  def call(__self, __context, __obj, *args, **kwargs):  # noqa: B902, as of jinja2
    method = getattr(__obj, '__wrapped__', __obj)
    name, value = getattr(method, '__name__', ''), getattr(method, '__self__', None)
    METER.get().step()
    if isinstance(value, (str, list, dict)):
      check_call(name, value, (*args, *kwargs.values()))
    return METER.get().weigh(super().call(__context, __obj, *args, **kwargs))


def raise_exception(message):
  """What a template calls where it refuses the messages."""
  raise jinja2.exceptions.TemplateError(str(message)[:1000])


def to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  """The filter tojson of transformers; jinja2's own writes HTML."""
  return json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def make_environment():
  """The Environment with what transformers offers to templates."""
  environment = Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=finalize,
    extensions=['jinja2.ext.loopcontrols', Generation],
  )
  environment.filters['tojson'] = to_json
  for name, function in [*environment.filters.items()]:
    environment.filters[name] = metered(name, function)
  environment.filters |= {
    'counted': counted,
    'concatenated': concatenated,
    'weighed': lambda value: METER.get().weigh(value),
  }
  del environment.globals['lipsum']
  environment.globals |= {
    'namespace': PlainNamespace,
    'raise_exception': raise_exception,
    'strftime_now': lambda format: datetime.datetime.now().strftime(str(format)[:1000]),
  }
  return environment


@functools.lru_cache(16)
def compiled(source):
  """The jinja2.Template of a chat template's source."""
  if len(source) > MAX_SOURCE:
    raise Costly(f'it has {len(source)} characters, at most {MAX_SOURCE} expected')
  with metering(Meter(len(source))):
    return make_environment().from_string(source)


@contextlib.contextmanager
def metering(meter):
  """Lets all that is rendered within count for a meter."""
  token = METER.set(meter)
  try:
    yield
  finally:
    METER.reset(token)


def render(source, messages, **variables):
  """The text of messages by a chat template's source; variables: what else it reads.

  Raises ValueError, one line that says what the template refuses, or what is wrong with it."""
  given = weight([messages, *variables.values()]) + len(source)
  try:
    with metering(Meter(given, len(messages))):
      text = compiled(source).render(messages=messages, **variables)
    if len(text) > MAX_TEXT + 4 * given:
      raise Costly(f'it writes {len(text)} characters, at most {MAX_TEXT + 4 * given} expected')
    return text
  except Exception as e:  # a program can raise any
    said = ' '.join(str(e).split())[:300]
    own = isinstance(e, jinja2.exceptions.TemplateError)
    raise ValueError(said if own else f'{type(e).__name__}: {said}') from e
