"""Eight CPU devices, full-precision products and one compilation cache, for the tests and what they
start; the fixtures that several files share."""

import os
import pathlib
import platform
import sys
import tempfile

# The programs are tiny and run once, compiling them is what takes the time: level 0 of LLVM; and
# the older code of fused loops, which compiles in less than half the time. That one rounds a value
# that two loops compute as each of them multiplies and adds, so that a number may differ from
# itself: without AVX2 there is one way.
FAST = '--xla_backend_optimization_level=0'
if platform.machine().lower() in ('x86_64', 'amd64'):
  FAST += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX'
FLAGS = f'--xla_force_host_platform_device_count=8 {FAST}'
if FLAGS not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
# Threads of the CPU client: with as few as there are devices, two programs may wait for each other.
os.environ.setdefault('NPROC', '16')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'vargrl_jax_cache')
)
# Every program: hundreds of small ones are the same in both processes and in all that they start.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
for folder in ('golden', 'parallel', 'checkpoint', 'tpu'):
  sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

import jax
import jax.numpy as jnp
from pod_fixtures import new, once, pod, ready  # noqa: F401
import pytest
from random_models import build
from small_chain import spoken  # noqa: F401
from small_images import images_folder, open_images  # noqa: F401
from small_talks import encode_talk, talks  # noqa: F401
from some_scenes import some  # noqa: F401

from vargrl.models import infinity, var
from vargrl.tokenizers import bsq, vq

# An array never broadcasts over an axis that it does not have.
jax.config.update('jax_numpy_rank_promotion', 'raise')


LONGEST = (
  'experiments_test',
  'resume_test',
  'train_test',
  'scales_kind_test',
  'branch_test',
  'var_torch_test',
  'lora_run_test',
  'pairs_test',
  'grpo_test',
  'main_test',
)


def pytest_collection_modifyitems(items):
  """The longest files first, so that no process is left with one of them at the end."""
  place = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope='session')
def small():
  """config, tokenizer config -> .model .params .boxed .vae .vq_params"""
  return build


@pytest.fixture(scope='session')
def smoke():
  """Depth 2, width 32, 2 heads, scales 1 2 4 (21 tokens), 32 codes."""
  return build(var.SIZES['smoke'], vq.SIZES['smoke'])


@pytest.fixture(scope='session')
def inputs(smoke):
  """(label_B, tokens_BL, inputs_BLC) of two rows for `smoke`."""
  t_BL = jax.random.randint(jax.random.key(7), (2, smoke.c.length), 0, smoke.c.vocab)
  return jnp.array([3, 8]), t_BL, smoke.vae.apply({'params': smoke.vq_params}, t_BL, method='embed')


@pytest.fixture(scope='session')
def bits():
  """Depth 2, width 32, 2 heads, scales 1 2 (4, 2) (13 tokens of 4 bits); prompts of up to 8
  features of 16.
  """
  return build(infinity.SIZES['smoke'], bsq.SIZES['smoke'])


@pytest.fixture(scope='session')
def said(bits):
  """(prompts of 8 and of 3 features, bits t_BLe, inputs_BLC) of two rows for `bits`."""
  t_BLe = jax.random.randint(jax.random.key(7), (2, bits.c.length, bits.c.bits), 0, 2)
  prompt_B = {
    'text': jax.random.normal(jax.random.key(8), (2, 8, bits.c.text)),
    'length': jnp.array([8, 3]),
  }
  return prompt_B, t_BLe, bits.vae.apply({'params': bits.vq_params}, t_BLe, method='embed')


@pytest.fixture(scope='session')
def compiles():
  """A list that grows by one with every program that XLA compiles."""
  seen = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: seen.append(name) if 'backend_compile' in name else None
  )
  jax.jit(lambda x: x * 3.25 + 1)(1.5)
  assert seen, 'the listener hears no compilation, so the tests below would prove nothing'
  return seen
