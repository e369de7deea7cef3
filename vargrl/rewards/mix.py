"""Several rewards as one score: device rewards in one program, host rewards in worker processes."""

import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import digest
from vargrl.parallel import multihost, rows
from vargrl.rewards import pool as pools
from vargrl.rewards import preprocess, worker

FILES = ('file', 'head', 'tokenizer', 'vocab')  # options of judges that name files


def make(rewards, *, bind, max_failed, workers, timeout, retries, chunk, lean=False, texts=None):
  """The Mix of {nickname: {'name': path, 'weight': float, **options}}.

  lean: one that is only compiled: no file is looked for, no worker started. texts: labels -> what
  host rewards get in the place of them, None: the labels.

  Of `bind`, functions that no config can hold, a device reward gets those that it has a
  keyword-only parameter for.
  """
  if not 0 <= max_failed < 1 or not rewards:
    found = f'max_failed={max_failed} and {len(rewards)} rewards'
    raise ValueError(f'rewards: found {found}, expected a share in [0, 1) and at least one')
  names, weights, device, judges, host = {}, {}, {}, {}, {}
  try:
    for nickname, options in plain(rewards).items():
      if not isinstance(options, dict) or not {'name', 'weight'} <= options.keys():
        raise ValueError(f"reward {nickname}: found {options}, expected 'name' and 'weight' in it")
      name, weights[nickname] = options.pop('name'), float(options.pop('weight'))
      names[nickname], module = name, device_module(name)
      if module is None and lean:
        continue
      if module is None:
        knobs = dict(workers=workers, timeout=timeout, retries=retries, chunk=chunk)
        host[nickname] = pools.Pool(name, options, **knobs)
      elif hasattr(module, 'judge'):
        if lean:
          options |= {k: None for k in FILES if k in options}
        if lean and str(options.get('names')).endswith('.txt'):
          options['names'] = ('',)  # a file too; any will do
        judges[nickname] = judge(nickname, name, module.judge, options)
      else:
        device[nickname] = bound(name, module.reward, options, bind)
  except BaseException:
    for pool in host.values():
      pool.close()
    raise
  return Mix(names, weights, device, judges, host, max_failed, texts)


def plain(x):
  """Dictionaries for what is like one (a ConfigDict), or each worker would import its library."""
  return {k: plain(v) for k, v in x.items()} if hasattr(x, 'items') else x


def device_module(name):
  """The module of a device reward; None for a host reward, whose function only workers import."""
  if name.startswith('rewards.'):
    files = pathlib.Path(__file__).parent.glob('*.py')
    ours = [f'rewards.{f.stem}' for f in files if '\nHOST = ' in f.read_text()]
    if name not in ours:
      raise ValueError(f'reward {name}: found no such file' + worker.nearest(name, ours))
  path, _ = worker.locate(name)
  if path.removeprefix('vargrl.') != name:
    return None  # a function, not a module that says HOST: called as host rewards are
  try:
    module = importlib.import_module(path)
  except ImportError as e:
    raise ValueError(f'reward {name}: importing {path} failed: {e}') from e
  if not (hasattr(module, 'HOST') and (hasattr(module, 'reward') or hasattr(module, 'judge'))):
    expected = (
      f'HOST = True or False and a function `reward` or `judge` in it, or {name}.<function>'
    )
    raise ValueError(f'reward {name}: found a module, expected {expected}')
  return None if module.HOST else module


def bound(name, function, options, bind):
  """function(frozen, image_Byxc, label_B), its other parameters filled from `bind` and options."""
  parameters = inspect.signature(function).parameters
  given = {k: v for k, v in bind.items() if k in parameters}
  if both := sorted(given.keys() & options.keys()):
    raise ValueError(f'reward {name}: {both[0]!r} is bound, expected no option of that name')
  worker.check_options(name, function, options | given, ('frozen', 'image_Byxc', 'label_B'))
  return functools.partial(function, **options, **given)


def judge(nickname, name, function, options):
  """The types.Judge that a module's `judge` makes of its options; what is wrong with those is told
  here.
  """
  worker.check_options(name, function, options, ())
  try:
    return function(**options)
  except (ValueError, OSError) as e:
    kind = FileNotFoundError if isinstance(e, FileNotFoundError) else ValueError
    raise kind(f'reward {nickname} ({name}): {e}') from e


class Mix:
  """A handle to the rewards of an experiment, made by `make`."""

  def __init__(self, names, weights, device, judges, host, max_failed, texts=None):
    self.names, self.weights, self.host, self.max_failed = names, weights, host, max_failed
    self.judges, self.towers, self.texts = judges, {}, texts
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

  def score(self, frozen, image_Byxc, label_B):
    """(r_B float32, NaN for rows without all verdicts; {nickname: r_B}; {name: rows or calls}).

    image_Byxc in [-1, 1]; label_B an array, or texts if there are host rewards only. Every host
    judges the rows that are its own, and has the verdicts of all."""
    each = {}
    pixels_Byxc = pixels(image_Byxc) if self.host else None  # first: it waits for no reward
    if self.device:
      labels = label_B if hasattr(label_B, 'dtype') else np.asarray(label_B)
      each |= self.device(frozen, image_Byxc, labels)
    if self.host:  # while the device works
      image_nyxc, at = multihost.owned_rows(pixels_Byxc)
      label_n = label_B[at] if hasattr(label_B, 'dtype') else [label_B[i] for i in at]
      if self.texts:
        label_n = self.texts(label_n)
      allowed = min(
        1.0, self.max_failed * len(label_B) / max(len(at), 1)
      )  # the share is of the rows of all hosts
      judged = lambda: pools.run(self.host.values(), image_nyxc, label_n, max_failed=allowed)
      r = multihost.allgather_rows(multihost.on_all_hosts(judged), at, len(label_B))
      each |= dict(zip(self.host, r, strict=True))
    each = {k: worker.finite(multihost.to_numpy(each[k])) for k in self.names}
    r_B = worker.finite(sum(self.weights[k] * each[k] for k in each))  # 0 * NaN is NaN: masked too
    return r_B, each, self.counts(r_B, each)

  def counts(self, r_B, each):
    """Rows lost by kind, over all rewards, and rows masked; an error if those are too many."""
    lost = {k: int(np.isnan(x_B).sum()) for k, x_B in each.items()}
    worst, masked = max(lost, key=lost.get), int(np.isnan(r_B).sum())
    last_error = self.host[worst].last_error if worst in self.host else 'it returned NaN or Inf'
    pools.refuse(self.names[worst], masked, len(r_B), self.max_failed, last_error)
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
def pixels(image_Byxc):
  """[-1, 1] -> uint8, rounded; on the device, so that a quarter of the bytes travels."""
  return preprocess.grey(rows.shard_rows(image_Byxc)).astype(jnp.uint8)


def device_scores(names, functions, judges, towers, frozen, image_Byxc, label_B):
  """{nickname: r_B} of all device rewards: one program, in which every tower runs once."""
  image_Byxc, label_B = rows.shard_rows((image_Byxc.astype(jnp.float32), label_B))
  weights, each = frozen['rewards'] if judges else {}, {}
  features = {key: tower.apply(weights['towers'][key], image_Byxc) for key, tower in towers.items()}
  for nickname, function in functions.items():
    each[nickname] = function(frozen, image_Byxc, label_B)
  for nickname, judge in judges.items():
    seen = {key: features[key] for key in judge.towers}
    each[nickname] = judge.score(weights['judges'][nickname], seen, label_B)
  for nickname, r_B in each.items():
    if r_B.shape != image_Byxc.shape[:1]:
      found = f'returned shape {r_B.shape}, expected {image_Byxc.shape[:1]}'
      raise ValueError(f'reward {names[nickname]}: {found}, one number for each image')
  return {nickname: r_B.astype(jnp.float32) for nickname, r_B in each.items()}


def fingerprint(weights):
  """What tells the towers of Mix.load's result from others, wherever their files lie.

  What judges computed from texts is not part of it: its last bits are another device's.
  """
  found = [
    digest.digest(tree) for key, tree in weights['towers'].items() if not key.startswith('random ')
  ]
  return ' '.join(sorted(found)) or 'random'
