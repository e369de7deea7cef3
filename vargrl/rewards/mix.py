"""Several rewards as one score: device rewards in one program, host rewards in worker processes."""

import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import digest
from vargrl.data import names as class_names
from vargrl.io import numbers, paths
from vargrl.io import text as io_text
from vargrl.parallel import multihost, rows
from vargrl.rewards import pool as pools
from vargrl.rewards import preprocess, worker
from vargrl.rewards.host_samples import HostSamples
from vargrl.types import Samples


def make(
  rewards,
  *,
  bind,
  max_failed,
  workers,
  timeout,
  retries,
  chunk,
  abstract=False,
  records=None,
  decode_text=None,
):
  """The Mix of {nickname: {'name': path, 'weight': float, **options}}.

  bind: {parameter: function}, functions that no config can hold; a device reward gets those that it
  has a keyword-only parameter for. max_failed: the share of a batch's rows that may be without a
  verdict. workers, timeout, retries, chunk: of each host reward's pool, see rewards/pool.py.
  abstract: a Mix that is only compiled: no file is looked for, no worker started. records: labels
  of some rows -> the records that host rewards see, dicts with all that the data says of a prompt;
  None: {'label': label}. decode_text: token ids of what a row said, int32 [L], -1 after the end ->
  the string that host rewards see; None: they see no texts that are token ids.

  Raises ValueError or FileNotFoundError, in one sentence, for whatever cannot work."""
  numbers.check_number('objective.collect.pool.max_failed', max_failed, least=0, below=1)
  if not rewards:
    raise ValueError('objective.collect.rewards: none found, at least one expected')
  names, weights, device, judges, host = {}, {}, {}, {}, {}
  try:
    for nickname, options in to_dict(rewards).items():
      if not isinstance(options, dict) or not {'name', 'weight'} <= options.keys():
        raise ValueError(f"reward {nickname}: found {options}, expected 'name' and 'weight' in it")
      name, weight = options.pop('name'), options.pop('weight')
      at = f'objective.collect.rewards.{nickname}.weight'
      weights[nickname] = float(numbers.check_number(at, weight))
      names[nickname], module = name, device_module(name)
      if module is None and abstract:
        continue
      if module is None:
        knobs = dict(workers=workers, timeout=timeout, retries=retries, chunk=chunk)
        host[nickname] = pools.Pool(name, options, **knobs)
      elif hasattr(module, 'judge'):
        options |= without_files(module, options) if abstract else expanded(module, options)
        judges[nickname] = make_judge(nickname, name, module, options, abstract)
      else:
        device[nickname] = bind_options(name, module.reward, options, bind)
  except BaseException:
    for pool in host.values():
      pool.close()
    raise
  return Mix(names, weights, device, judges, host, max_failed, records, decode_text)


def check_names(rewards, *, classes, records, prompts=()):
  """Refuses a reward whose list of `names` does not fit the labels of its rows.

  rewards: as in `make`. classes: how many classes labels are of, each with its name; 0 where labels
  are the numbers of records, `records` of them, or None where nobody knows how many. prompts: of
  these records, in their order, where they are known: the names must be the same. Raises
  ValueError."""
  for nickname, section in rewards.items():
    if 'names' not in section or not (classes or records):
      continue
    try:
      names = class_names.load(section['names'])
    except (ValueError, OSError):
      continue  # `make` says what is wrong, in the words of the reward
    count, of_classes = len(names), f'{len(names)} names of classes'
    if classes and count != classes:
      raise ValueError(f'reward {nickname}: {of_classes}, {classes} classes in the policy')
    if not classes and count < records:
      raise ValueError(
        f'reward {nickname}: {count} names found, at least {records} expected, one for each record '
        'of the data'
      )
    for i, (name, prompt) in enumerate(zip(names, prompts)):
      if name.strip() != prompt.strip():
        wrong = f'name {i} is {name!r}, {prompt!r} expected, the prompt of that record'
        raise ValueError(f'reward {nickname}: {wrong}')


def without_files(module, options):
  """Changes of a judge's options by which it looks for no file: None for each that names one."""
  changes = {option: None for option in module.FILES if option in options}
  if str(options.get('names')).endswith('.txt'):
    changes['names'] = ('',)  # the names of classes are a file too; any will do
  return changes


def expanded(module, options):
  """Changes of a judge's options by which paths of files mean the same to it as to all others."""
  found = {option: options.get(option) for option in module.FILES}
  return {k: str(paths.path(x)) for k, x in found.items() if isinstance(x, str) and x}


def to_dict(x):
  """x with dictionaries in the place of ConfigDicts, whose library each worker would import."""
  return {k: to_dict(v) for k, v in x.items()} if hasattr(x, 'items') else x


def device_module(name):
  """The module of a device reward; None for a host reward, whose function only workers import."""
  if name.startswith('rewards.'):
    files = pathlib.Path(__file__).parent.glob('*.py')
    ours = [f'rewards.{f.stem}' for f in files if '\nHOST = ' in io_text.read_text(f)]
    if name not in ours:
      raise ValueError(f'reward {name}: found no such file' + worker.suggestion(name, ours))
  path, _ = worker.locate(name)
  if path.removeprefix('vargrl.') != name:
    return None  # a function, not a module that says HOST: called as host rewards are
  try:
    module = importlib.import_module(path)
  except Exception as e:  # what its own code raises
    raise ValueError(f'reward {name}: importing {path} failed: {type(e).__name__}: {e}') from e
  if not (hasattr(module, 'HOST') and (hasattr(module, 'reward') or hasattr(module, 'judge'))):
    expected = (
      f'HOST = True or False and a function `reward` or `judge` in it, or {name}.<function>'
    )
    raise ValueError(f'reward {name}: found a module, expected {expected}')
  if hasattr(module, 'judge') and not hasattr(module, 'FILES'):
    expected = 'the options of `judge` that name files, () if none do'
    raise ValueError(f'reward {name}: found no FILES in the module, expected {expected}')
  return None if module.HOST else module


def bind_options(name, function, options, bind):
  """function(frozen, samples), its other parameters filled from `bind` and options."""
  parameters = inspect.signature(function).parameters
  given = {k: v for k, v in bind.items() if k in parameters}
  if both := sorted(given.keys() & options.keys()):
    raise ValueError(f'reward {name}: {both[0]!r} is bound, expected no option of that name')
  worker.check_options(name, function, options | given, ('frozen', 'samples'))
  return functools.partial(function, **options, **given)


def make_judge(nickname, name, module, options, abstract):
  """The Judge that a module makes of its options. abstract: those of files are None.

  Raises ValueError or FileNotFoundError, naming the reward, for what is wrong with those."""
  worker.check_options(name, module.judge, options, ())
  try:
    return module.judge(**options)
  except (ValueError, OSError) as e:
    kind = FileNotFoundError if isinstance(e, FileNotFoundError) else ValueError
    more = ''
    if abstract and kind is FileNotFoundError:
      more = f'; FILES = {module.FILES!r} found, all options expected in it that name files'
    raise kind(f'reward {nickname} ({name}): {e}{more}') from e


class Mix:
  """A handle to the rewards of an experiment, made by `make`."""

  def __init__(
    self, names, weights, device, judges, host, max_failed, records=None, decode_text=None
  ):
    self.names, self.weights, self.host, self.max_failed = names, weights, host, max_failed
    self.judges, self.towers, self.records, self.decode_text = judges, {}, records, decode_text
    for judge in judges.values():
      self.towers = judge.towers | self.towers
    functions = functools.partial(device_scores, names, device, judges, self.towers)
    self.device = (device or judges) and jax.jit(functions)

  def load(self, mesh):
    """{'towers': {key: weights}, 'judges': {nickname: weights}}: what `score` finds in
    frozen['rewards'].
    """
    return {
      'towers': {key: tower.load(mesh) for key, tower in self.towers.items()},
      'judges': {nickname: judge.load(mesh) for nickname, judge in self.judges.items()},
    }

  def shapes(self, mesh):
    """What `load` would return, abstract."""
    return {
      'towers': {key: tower.shapes(mesh) for key, tower in self.towers.items()},
      'judges': {nickname: judge.shapes(mesh) for nickname, judge in self.judges.items()},
    }

  def score(self, frozen, samples, group_size):
    """(r_B float32, NaN for rows without all verdicts; {nickname: r_B}; {name: rows or calls}).

    samples: types.Samples of B rows, the `group_size` rows of a prompt adjacent. Every host judges
    the rows that are its own with its host rewards, and has the verdicts of all. Raises
    RuntimeError where more than the share `max_failed` of the rows has no verdict."""
    each, B = {}, count(samples)
    if B % group_size:
      raise ValueError(
        f'samples: {B} rows found, a multiple of the group size {group_size} expected'
      )
    pictures = self.host and samples.image_Byxc is not None
    pixels_Byxc = (
      to_uint8(samples.image_Byxc) if pictures else None
    )  # first: it waits for no reward
    if self.device:
      each |= self.device(frozen, device_samples(samples))
    if self.host:  # while the device works
      image_nyxc, at = own_rows(pixels_Byxc, B, group_size if self.groups else 1)
      allowed = min(1.0, self.max_failed * B / max(len(at), 1))  # the share is of all hosts' rows

      def judge_rows():
        mine = host_samples(samples, image_nyxc, at, group_size, self.records, self.decode_text)
        return pools.run(self.host.values(), mine, group_size=group_size, max_failed=allowed)

      r = multihost.allgather_rows(multihost.on_all_hosts(judge_rows), at, B)
      each |= dict(zip(self.host, r, strict=True))
    each = {k: worker.finite(multihost.to_numpy(each[k])) for k in self.names}
    r_B = worker.finite(sum(self.weights[k] * each[k] for k in each))  # 0 * NaN is NaN: masked too
    return r_B, each, self.counts(r_B, each)

  @property
  def groups(self):
    """Nicknames of the rewards that compare the rows of a prompt (GROUPS = True)."""
    return [nickname for nickname, pool in self.host.items() if pool.groups]

  def counts(self, r_B, each):
    """Rows lost by kind, over all rewards, and rows masked; an error if those are too many."""
    lost = {k: int(np.isnan(x_B).sum()) for k, x_B in each.items()}
    worst, masked = max(lost, key=lost.get), int(np.isnan(r_B).sum())
    last_error = self.host[worst].last_error if worst in self.host else 'it returned NaN or Inf'
    pools.check_failures(self.names[worst], masked, len(r_B), self.max_failed, last_error)
    kinds = (*pools.KINDS, 'retry')
    counts = multihost.sum_over_hosts(
      {kind: sum(p.counts[kind] for p in self.host.values()) for kind in kinds}
    )
    counts['nan'] += sum(lost[k] for k in each if k not in self.host)
    return {f'reward/{k}': v for k, v in (counts | {'masked': masked}).items()}

  def close(self):
    for pool in self.host.values():
      pool.close()


@jax.jit
def to_uint8(image_Byxc):
  """[-1, 1] -> uint8, rounded; on the device, so that a quarter of the bytes travels."""
  return preprocess.to_grey_levels(rows.shard_rows(image_Byxc)).astype(jnp.uint8)


def device_scores(names, functions, judges, towers, frozen, samples):
  """{nickname: r_B} of all device rewards: one program, in which every tower runs once."""
  if samples.image_Byxc is not None:
    samples = samples.replace(image_Byxc=samples.image_Byxc.astype(jnp.float32))
  samples = rows.shard_rows(samples)
  weights, each = frozen['rewards'] if judges else {}, {}
  for nickname, judge in judges.items():
    if judge.towers and samples.image_Byxc is None:
      raise ValueError(f'reward {names[nickname]}: rows without pictures found, pictures expected')
  features = {
    key: tower.apply(weights['towers'][key], samples.image_Byxc) for key, tower in towers.items()
  }
  for nickname, function in functions.items():
    try:
      each[nickname] = function(frozen, samples)
    except (AttributeError, TypeError) as e:
      if samples.image_Byxc is not None:
        raise
      raise ValueError(f'reward {names[nickname]}: fails on rows without pictures: {e}') from e
  for nickname, judge in judges.items():
    seen = {key: features[key] for key in judge.towers}
    each[nickname] = judge.score(weights['judges'][nickname], seen, samples)
  B = count(samples)
  for nickname, r_B in each.items():
    if r_B.shape != (B,):
      found = f'returned shape {r_B.shape}, expected {(B,)}'
      raise ValueError(f'reward {names[nickname]}: {found}, one number for each row')
  return {nickname: r_B.astype(jnp.float32) for nickname, r_B in each.items()}


def count(samples):
  """B, the number of rows of types.Samples."""
  record = samples.record
  return len(record['label'] if hasattr(record, 'items') else record)


def device_samples(samples):
  """What of types.Samples device rewards see: pictures, token ids of texts, labels."""
  record = samples.record
  if not hasattr(record, 'items'):
    record = {'label': np.array([row['label'] for row in record], np.int32)}
  ids = {name: x for name, x in (samples.texts or {}).items() if hasattr(x, 'dtype')}
  return Samples(samples.image_Byxc, ids, {'label': record['label']})


def host_samples(samples, image_nyxc, at, group_size, records, decode_text):
  """The HostSamples of the rows `at` of types.Samples, whose labels every host has. records: see
  `make`."""
  if hasattr(samples.record, 'items'):
    label_n = np.asarray(samples.record['label'])[at]
    record = records(label_n) if records else [{'label': label} for label in label_n.tolist()]
  else:
    record = [samples.record[i] for i in at]
  texts = {
    name: [decode_text(said[i]) if hasattr(said, 'dtype') else said[i] for i in at]
    for name, said in (samples.texts or {}).items()
    if decode_text or not hasattr(said, 'dtype')
  }
  return HostSamples(image_nyxc, texts, record, at // group_size)


def own_rows(pixels_Byxc, B, unit):
  """(uint8 pictures or None, positions) of the rows that this host judges; each row is one host's.

  unit: so many adjacent rows are judged by one host together. A host has the rows whose pictures
  lie on its devices; where these are not whole units, or there are no pictures, the units are dealt
  out to the hosts in turn."""
  if pixels_Byxc is not None and not cuts_units(pixels_Byxc, unit):
    return multihost.owned_rows(pixels_Byxc)
  units = np.arange(B).reshape(-1, unit)[jax.process_index() :: jax.process_count()]
  at = units.reshape(-1)
  return None if pixels_Byxc is None else multihost.to_numpy(pixels_Byxc)[at], at


def cuts_units(x, unit):
  """Whether some device holds a part of a unit of `unit` rows; every host finds the same."""
  slices = [index[0] for index in x.sharding.devices_indices_map(x.shape).values()]
  return any((s.start or 0) % unit or (len(x) if s.stop is None else s.stop) % unit for s in slices)


def fingerprint(weights):
  """A digest of the towers' weights in Mix.load's result, wherever their files lie.

  What judges computed from texts is not part of it: its last bits depend on the device."""
  found = [
    digest.digest(tree) for key, tree in weights['towers'].items() if not key.startswith('random ')
  ]
  return ' '.join(sorted(found)) or 'random'
