"""What a run has learned goes out as a reference file; such a file goes in, checked before anything
runs.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import official
import pytest
import safetensors.numpy
from small_chain import SCENES

from vargrl import main
from vargrl.checkpoint import digest, store, torch_format
from vargrl.commands import experiment
from vargrl.data import scenes_tokenizer as scenes
from vargrl.data import text
from vargrl.data.dialogue import encode
from vargrl.models import var
from vargrl.parallel import place
from vargrl.tokenizers import vq
from vargrl.training import weights as run_weights
from vargrl.training.run import Run, check_token_ids
from vargrl.types import State

GRPO = 'experiments/grpo_var_d16_jpeg.py:smoke'


def random(shapes, seed):
  rng = np.random.default_rng(seed)
  one = lambda x: jax.device_put(rng.standard_normal(x.shape).astype(x.dtype), x.sharding)
  return jax.tree.map(one, shapes)


def settings(config=GRPO, **init):
  config = experiment.load(config)
  config.init.update(init)
  return config


@pytest.fixture(scope='module')
def run():
  return Run(settings(), '.', inference_only=True)


@pytest.fixture(scope='module')
def weights(run):
  return random(run.shapes.params, 1)


@pytest.fixture(scope='module')
def workdir(weights, tmp_path_factory):
  """Of a run of the smallest policy, with a checkpoint at step 7."""
  root = tmp_path_factory.mktemp('run')
  keep = store.Store(root / 'checkpoints', every_steps=1, max_to_keep=1)
  keep.save(7, State(weights, {'count': jax.numpy.zeros((), jax.numpy.int32)}), None, {})
  keep.close()
  return root


def export(workdir, out, config=GRPO, *more):
  return main.main(
    ['vargrl', 'export', '--config', config, '--workdir', str(workdir), f'--out={out}', *more]
  )


def equal(a, b):
  return jax.tree.all(
    jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
  )


def test_export_of_a_checkpoint_is_imported_bit_for_bit(run, weights, workdir, tmp_path, capsys):
  out = tmp_path / 'policy.safetensors'
  assert export(workdir, out) == 0
  assert f'of models.var smoke in {out}' in capsys.readouterr().out
  config = settings(policy=str(out))
  loaded, meta = run_weights.load_or_init(
    config, 'policy', run.built.trained['policy'], run.mesh, tmp_path
  )
  assert equal(loaded, weights['policy']) and meta == {}
  assert loaded['head']['w'].sharding == run.shapes.params['policy']['head']['w'].sharding
  # A reference without a file of its own is what the policy starts from; the fingerprint is of the
  # weights.
  config.reference = True
  again = Run(config, tmp_path, inference_only=True)
  frozen = again.frozen(say=lambda text: None, only=('reference',))
  assert equal(frozen['reference'], weights['policy'])
  assert again.fingerprints(frozen) == {'reference': digest.digest(weights['policy'])}
  keys = torch_format.expected_shapes(
    var.torch_layouts(run.policy.config)[0].table, torch_format.leaves(weights['policy'])
  )
  assert set(safetensors.numpy.load_file(out)) >= set(keys) | {'lvl_1L', 'attn_bias_for_masking'}


def test_the_moving_average_is_exported_where_there_is_one(run, weights, tmp_path):
  ema = {
    'policy': weights['policy'] | {'head': jax.tree.map(lambda x: 2 * x, weights['policy']['head'])}
  }
  keep = store.Store(tmp_path / 'checkpoints', every_steps=1, max_to_keep=1)
  part = {'policy': {'head': ema['policy']['head']}}  # the others are frozen
  keep.save(7, State(weights, {}, part), None, {})
  keep.close()
  assert export(tmp_path, tmp_path / 'policy.safetensors') == 0
  layouts = var.torch_layouts(run.policy.config)
  loaded = torch_format.load(tmp_path / 'policy.safetensors', layouts, run.shapes.params['policy'])
  assert equal(loaded, ema['policy']) and not equal(loaded, weights['policy'])


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')
def test_export_as_pth(run, weights, workdir, tmp_path):
  assert export(workdir, tmp_path / 'policy.pth') == 0
  layouts = var.torch_layouts(run.policy.config)
  assert equal(
    torch_format.load(tmp_path / 'policy.pth', layouts, run.shapes.params['policy']),
    weights['policy'],
  )


def test_a_tokenizer_goes_in_from_a_folder_and_from_a_file_of_the_workdir(
  run, tmp_path, monkeypatch
):
  shapes = place.abstract_params(run.built.frozen['tokenizer'], run.mesh)
  params = random(shapes, 2)
  layouts = vq.torch_layouts(vq.SIZES['smoke'])
  torch_format.save(tmp_path / 'hf' / 'model.safetensors', layouts[0], params)
  torch_format.save(tmp_path / 'alone.safetensors', layouts[0], params)
  configs = [
    settings(tokenizer=path)
    for path in (str(tmp_path / 'hf'), './hf', '~/hf', '~/alone.safetensors', 'alone.safetensors')
  ]
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for config in configs:  # the last is no run of the chain
    assert equal(
      Run(config, tmp_path / 'w', inference_only=True).frozen(only=('tokenizer',))['tokenizer'],
      params,
    )


def test_a_file_of_another_model_is_told_by_the_configs_key_before_anything_is_read(tmp_path):
  path = str(official.file('var_tiny', 'transformer'))
  with pytest.raises(ValueError) as error:
    Run(settings(policy=path), tmp_path, inference_only=True)
  assert str(error.value).startswith(f'init.policy: {path}: not the weights of this model')
  assert '~ class_emb.weight (11, 64) in file, (11, 32) in model' in str(error.value)
  brings = 'init.policy: none.pth: no such file; `hf download FoundationVision/var none.pth'
  with pytest.raises(FileNotFoundError, match=brings):
    Run(settings(policy='./none.pth'), tmp_path, inference_only=True)
  (tmp_path / 'x.pth').write_bytes(b'PK')
  with pytest.raises(ValueError, match='init.tokenizer: .*x.pth: truncated'):
    Run(settings(tokenizer=str(tmp_path / 'x.pth')), tmp_path, inference_only=True)
  config = settings('experiments/tokenizer_msvq_imagenet256.py:smoke')
  config.init.critic = 'x.pth'
  with pytest.raises(
    ValueError, match='init.critic: x.pth found, but models.judges.critics has no'
  ):
    run_weights.torch_layouts(config, 'critic')
  has_none = 'init.classifier: x.pth found, but models.judges.classifier has no reference layout'
  with pytest.raises(ValueError, match=has_none):
    Run(
      settings('experiments/vmr_digits.py:smoke', classifier='x.pth'), tmp_path, inference_only=True
    )


def test_a_unified_policy_is_a_folder_with_its_tokenizer_and_words(spoken, tmp_path, capsys):
  out = tmp_path / 'released'
  assert export(spoken.workdir, out, SCENES) == 0, capsys.readouterr().err
  assert f'of models.unified smoke in {out}, with its tokenizer' in capsys.readouterr().out
  config = spoken.chain.dpo.copy_and_resolve_references()
  config.init = {'policy': str(out), 'tokenizer': str(out)}
  again = Run(config, tmp_path, inference_only=True)
  assert equal(again.frozen(only=('tokenizer',))['tokenizer'], spoken.weights['tokenizer'])
  assert equal(
    run_weights.load_or_init(config, 'policy', again.built.trained['policy'], again.mesh, tmp_path)[
      0
    ],
    spoken.weights['policy'],
  )
  prefixes = {key.split('.')[0] for key in safetensors.numpy.load_file(out / 'model.safetensors')}
  assert {'vae_local', 'vargpt_gen', 'visual', 'model'} <= prefixes
  form = encode.make_format(
    tokenizer=str(out), vision=config.data.vision, size=(32, 32), crop='cover'
  )
  with config.unlocked():
    config.data.tokenizer = str(out)
  check_token_ids(config.data, again.policy.config)
  said = [{'role': 'user', 'content': 'write "AB" in red.'}]
  np.testing.assert_array_equal(
    text.encode_prompt(form.tokenizer, said), text.encode_prompt(scenes.build(), said)
  )
  # The words of a folder go along as they are, but for what is not theirs; weights that are there
  # stay.
  before = (out / 'config.json').read_bytes()
  text.copy_files(form.tokenizer, tmp_path)
  assert {path.name for path in tmp_path.glob('*.json')} == {
    'tokenizer.json',
    'tokenizer_config.json',
  }
  assert export(spoken.workdir, out, SCENES) == 2 and (out / 'config.json').read_bytes() == before
  assert 'a folder with weights found' in capsys.readouterr().err


def test_a_unified_policy_goes_into_one_file_too(spoken, tmp_path):
  out = tmp_path / 'whole.safetensors'
  assert export(spoken.workdir, out, SCENES) == 0
  config = spoken.chain.dpo.copy_and_resolve_references()
  config.init = {'tokenizer': str(out)}
  assert equal(
    Run(config, tmp_path, inference_only=True).frozen(only=('tokenizer',))['tokenizer'],
    spoken.weights['tokenizer'],
  )
  assert [path.name for path in tmp_path.iterdir()] == ['whole.safetensors']


def test_a_folder_may_have_a_dot_in_its_name(spoken, tmp_path):
  assert export(spoken.workdir, tmp_path / 'VARGPT-v1.1', SCENES) == 0
  assert (tmp_path / 'VARGPT-v1.1' / 'model.safetensors').is_file()


def test_the_home_folder_is_one_place(run, weights, workdir, tmp_path, monkeypatch):
  """Of checkpoints, of what is written, and of the experiment's file."""
  monkeypatch.setenv('HOME', str(workdir.parent))
  where, config = f'~/{workdir.name}', f'~/{workdir.name}/mine.py:smoke'
  (workdir / 'mine.py').write_text(
    f'from vargrl.commands import experiment\n'
    f'get_config = lambda arg: experiment.load({str(pathlib.Path(GRPO).resolve())!r})\n'
  )
  monkeypatch.chdir(tmp_path)
  assert export(where, f'{where}/out/policy.safetensors', config) == 0
  layouts = var.torch_layouts(run.policy.config)
  found = torch_format.load(
    workdir / 'out' / 'policy.safetensors', layouts, run.shapes.params['policy']
  )
  assert equal(found, weights['policy']) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'out, config, words',
  [
    ('x.npz', SCENES, "--out: x.npz: ending '.npz', expected .safetensors or .pth, or a folder"),
    ('x', SCENES, 'no checkpoint in'),
    ('x.npz', GRPO, "--out: x.npz: ending '.npz', expected .safetensors or .pth"),
    ('', GRPO, '--out is missing'),
    ('x.safetensors', GRPO, 'no such folder'),
    (
      'x.safetensors',
      'experiments/quickstart.py:smoke --run=classifier',
      'models.judges.classifier, which has no',
    ),
    (
      'x.safetensors',
      'experiments/quickstart.py:smoke --run=none',
      "--run: 'none', expected one of",
    ),
  ],
)
def test_what_cannot_be_exported_is_told(out, config, words, tmp_path, capsys):
  config, *more = config.split()
  assert export(tmp_path / 'w', out, config, *more) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and words in error, error
  assert not list(tmp_path.iterdir())
