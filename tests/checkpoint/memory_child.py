"""memory_child.py {write,load} SIZE FILE: random weights of models.var SIZE into FILE, or these
onto a mesh.

`load` prints JSON: bytes of the parameters, anonymous memory (Linux's RssAnon: what is mapped from
a file does not count) before and at its highest, seconds."""

import json
import math
import os
import pathlib
import sys
import threading
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from vargrl.checkpoint import files, torch_format  # noqa: E402
from vargrl.models import var  # noqa: E402
from vargrl.parallel import mesh as meshes  # noqa: E402
from vargrl.parallel import place


def abstract(size):
  """(layouts, abstract weights on a 1 x 8 x 1 mesh)"""
  model = var.Model(var.SIZES[size])
  mesh = meshes.make((('data', 1), ('fsdp', 8), ('tensor', 1)))
  return var.torch_layouts(model.c), place.abstract_params(lambda key: var.init(model, key), mesh)


def write(size, path):
  (layout,), shapes = abstract(size)
  wanted, rng = (
    torch_format.expected_shapes(layout.table, torch_format.leaves(shapes)),
    np.random.default_rng(0),
  )
  headers = {k: (shape, np.dtype('float32')) for k, shape in wanted.items()}
  headers |= {k: (x.shape, x.dtype) for k, x in layout.constants.items()}
  value = lambda k, shape: (
    layout.constants[k] if k in layout.constants else rng.random(shape, np.float32)
  )
  files.write(path, headers, ((k, value(k, shape)) for k, (shape, _) in headers.items()))


def anonymous():
  text = pathlib.Path('/proc/self/status').read_text()
  return int(text.split('RssAnon:')[1].split()[0]) * 1024


def load(size, path):
  layouts, shapes = abstract(size)
  jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[-1]))
  peak, done = [anonymous()], threading.Event()
  before, began = peak[0], time.time()

  def watch():
    while not done.wait(0.005):
      peak[0] = max(peak[0], anonymous())

  thread = threading.Thread(target=watch)
  thread.start()
  params = torch_format.load(path, layouts, shapes)
  done.set()
  thread.join()
  leaves = jax.tree.leaves(params)
  assert all(x.sharding == s.sharding for x, s in zip(leaves, jax.tree.leaves(shapes)))
  held = sum(math.prod(s.data.shape) * 4 for x in leaves for s in x.addressable_shards)
  print(
    json.dumps(
      dict(
        bytes=sum(x.nbytes for x in leaves),
        held=held,
        before=before,
        peak=peak[0],
        after=anonymous(),
        seconds=time.time() - began,
        pid=os.getpid(),
      )
    )
  )


if __name__ == '__main__':
  {'write': write, 'load': load}[sys.argv[1]](*sys.argv[2:])
