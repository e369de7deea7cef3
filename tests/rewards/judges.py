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


def mean(images, prompts):
  return [float(image.mean()) for image in images]


def prompt(images, prompts, *, scale=1.0):
  return np.asarray(prompts, np.float64) * scale


def parallel(images, prompts):
  """In processes of its own."""
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as others:
    return list(others.map(float, prompts))


def length(images, prompts):
  return [len(text) for text in prompts]


def holes(images, prompts):
  """No verdict for prompts 1 to 4, in four ways."""
  bad = {1: None, 2: float('nan'), 3: float('inf'), 4: 1e300}
  return [bad.get(int(p), float(p)) for p in prompts]


def raises(images, prompts):
  raise KeyError('no such detector')


def raises_for(images, prompts, *, bad, seconds=0.0):
  """Raises at once for one prompt; takes its time for the others."""
  if bad in [int(p) for p in prompts]:
    raise RuntimeError(f'prompt {bad} is not to my taste')
  time.sleep(seconds)
  return [float(p) for p in prompts]


def once(images, prompts, *, how, folder):
  """Fails the first time it is called on a prompt, in any process."""
  flag = os.path.join(folder, f'{int(prompts[0])}')
  if not os.path.exists(flag):
    open(flag, 'w').close()
    fail(how)
  return [float(p) for p in prompts]


def always(images, prompts, *, how):
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


def poisoned(images, prompts, *, how, log=None):
  """The mean of each image; `how` says for which prompts there is what instead."""
  if log:
    with open(log, 'a') as f:
      f.write(f'{len(images)}\n')
  scores = []
  for image, prompt in zip(images, prompts):
    fail(how.get(int(prompt)))
    if how.get(int(prompt)) != 'skip':
      scores.append(float(image.mean()))
  return scores


def hangs_with_a_child(images, prompts, *, file):
  child = subprocess.Popen(['sleep', '1000'])
  with open(file, 'w') as f:
    f.write(str(child.pid))
  time.sleep(1000)


def returns(images, prompts, *, what):
  n = len(images)
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


def jax_is_here(images, prompts):
  return [float('jax' in sys.modules)] * len(images)


def chunk_size(images, prompts):
  return [float(len(images))] * len(images)


def remote(images, prompts, *, url):
  """What a server answers to the bytes of the images: a JSON list of numbers."""
  with urllib.request.urlopen(url, images.tobytes()) as answer:
    return json.load(answer)
