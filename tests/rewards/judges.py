"""Reward functions that workers import: good ones, and one for each way to be bad."""

import concurrent.futures
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np

NOT_A_FUNCTION = 3


def labels(samples):
  return [int(record['label']) for record in samples.record]


def takes_nothing():
  return [0.0]


def mean(samples):
  return [float(image.mean()) for image in samples.image_Byxc]


def label(samples, *, scale=1.0):
  return np.asarray(labels(samples), np.float64) * scale


def parallel(samples):
  """In processes of its own."""
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as others:
    return list(others.map(float, labels(samples)))


def length(samples):
  return [len(record['prompt']) for record in samples.record]


def holes(samples):
  """No verdict for labels 1 to 4, in four ways."""
  bad = {1: None, 2: float('nan'), 3: float('inf'), 4: 1e300}
  return [bad.get(p, float(p)) for p in labels(samples)]


def raises(samples):
  raise KeyError('no such detector')


def raises_for(samples, *, bad, seconds=0.0):
  """Raises at once for one label; takes its time for the others."""
  if bad in labels(samples):
    raise RuntimeError(f'label {bad} is not to my taste')
  time.sleep(seconds)
  return [float(p) for p in labels(samples)]


def once(samples, *, how, folder):
  """Fails the first time it is called on a label, in any process."""
  flag = os.path.join(folder, f'{labels(samples)[0]}')
  if not os.path.exists(flag):
    open(flag, 'w').close()
    fail(how)
  return [float(p) for p in labels(samples)]


def always(samples, *, how):
  fail(how)


def fail(how):
  if how == 'raise':
    raise RuntimeError('the service is away')
  if how == 'exit':
    os._exit(3)
  if how == 'sigkill':
    os.kill(os.getpid(), signal.SIGKILL)
  if how == 'hang':
    time.sleep(1000)


def poisoned(samples, *, how, log=None):
  """The mean of each image; `how` says for which labels there is what instead."""
  if log:
    with open(log, 'a') as f:
      f.write(f'{len(samples.record)}\n')
  scores = []
  for image, row in zip(samples.image_Byxc, labels(samples)):
    fail(how.get(row))
    scores.append('text' if how.get(row) == 'text' else float(image.mean()))
  return scores


def counts(samples, *, of, log):
  """As many scores as `of` says of a number of rows."""
  with open(log, 'a') as f:
    f.write(f'{len(samples.record)}\n')
  return [0.5] * {
    'one': 1,
    'one less': len(samples.record) - 1,
    'two each': 2 * len(samples.record),
  }[of]


def hangs_with_a_child(samples, *, file):
  child = subprocess.Popen(['sleep', '1000'])
  with open(file, 'w') as f:
    f.write(str(child.pid))
  time.sleep(1000)


def returns(samples, *, what):
  n = len(samples.record)
  return {
    'short': [0.0] * (n - 1),
    'scalar': 1.0,
    'column': np.zeros((n, 1)),
    'nothing': None,
    'text': ['good'] * n,
    'complex': np.zeros(n, complex),
    'ragged': [[1.0], [1.0, 2.0]] + [0.0] * (n - 2),
    'bool': np.ones(n, bool),
    'integers': np.arange(n),
    'objects': np.array([None, *range(1, n)], object),
  }[what]


def jax_is_here(samples):
  return [float('jax' in sys.modules)] * len(samples.record)


def chunk_size(samples):
  return [float(len(samples.record))] * len(samples.record)


def remote(samples, *, url):
  """What a server answers to the bytes of the images: a JSON list of numbers."""
  with urllib.request.urlopen(url, samples.image_Byxc.tobytes()) as answer:
    return json.load(answer)


def says(samples, *, segment, word):
  """Whether a row says a word; looks at no picture."""
  return [float(word in said.split()) for said in samples.texts[segment]]


def describes(samples):
  """Whether a row calls its own picture what it is, dark or bright."""
  pairs = zip(samples.image_Byxc, samples.texts['text'], strict=True)
  return [float(said == ('bright' if image.mean() > 127 else 'dark')) for image, said in pairs]


def includes(samples):
  """The share of a record's list `include` that its row says."""
  rows = zip(samples.texts['text'], samples.record, strict=True)
  return [np.mean([word in said for word in record['include']]) for said, record in rows]


def best(samples):
  """1 for the longest answer to each prompt, 0 for the others."""
  lengths, group = np.array([len(said) for said in samples.texts['text']]), samples.group
  return [float(n == lengths[group == g].max()) for n, g in zip(lengths, group)]


best.GROUPS = True
