"""Text alone is a policy: every objective trains it through the loop; what is resumed is what was
never interrupted; it answers, is judged and goes out to transformers."""

import json

import jax
import numpy as np
import pytest
import tiny_configs

from vargrl import main
from vargrl.commands import chat, experiment
from vargrl.parallel import mesh as meshes
from vargrl.reporting import writer as writing
from vargrl.training import loop


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """A run is made for all devices of the machine; these need one."""
  before = meshes.make
  meshes.make = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  yield
  meshes.make = before


def config(objective, steps=2):
  c = tiny_configs.config(objective, 'qwen2')
  c.steps, c.save_every = steps, 2
  c.optim.update(peak=1e-2)
  if 'resample' in c.objective.collect:
    c.objective.collect.resample = 0
  if 'rewards' in c.objective.collect:
    c.objective.collect.rewards.near = dict(name='near', weight=1.0)
  return c


def train(config, folder):
  """The numbers of the last step, and the State."""
  state = loop.train(config, folder, log=lambda text: None)
  return [row for row in writing.load(folder) if 'loss' in row][-1], state


def same(a, b):
  equal = lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes()
  return jax.tree.all(jax.tree.map(equal, a, b))


@pytest.fixture(scope='module')
def grpo(tmp_path_factory):
  """(folder, numbers of the last step, State) of four steps of GRPO."""
  folder = tmp_path_factory.mktemp('text') / 'grpo'
  return folder, *train(config('grpo', 4), folder)


def test_grpo_learns_from_what_records_say_and_resumes_to_the_same_bits(grpo, tmp_path):
  _, last, state = grpo
  assert np.isfinite(last['loss']) and last['sampler/trainer_gap'] < 1e-5
  assert last['reward/masked'] == 0 and last['rewards/near'] < 0 and last['kl'] > 0
  assert 0 <= last['rewards/right'] < 1 and last['frac_reward_zero_std'] < 1
  train(config('grpo', 2), tmp_path)
  again, resumed = train(config('grpo', 4), tmp_path)
  assert same(state, resumed) and again['step'] == last['step'] == 3
  timeless = lambda row: {k: v for k, v in row.items() if not k.startswith(('time/', 'speed/'))}
  assert timeless(again) == timeless(last)


@pytest.mark.parametrize('objective', ['sft', 'dpo', 'dpo_groups'])
def test_other_objectives_train_text_alone(objective, tmp_path):
  last, state = train(config(objective), tmp_path)
  assert np.isfinite(last['loss']) and last['skipped'] == 0 and last['grad_norm'] > 0
  if objective == 'sft':
    assert 0 < last['loss'] < 8 and 'accuracy' in last
  else:
    assert np.isfinite(last['rewards/margins'])


SMOKE = 'experiments/grpo_qwen2_text.py:smoke'


@pytest.fixture(scope='module')
def about(grpo):
  """Arguments of a command about the run of GRPO, of the most likely text."""
  where = ['--config', SMOKE, '--run=grpo', '--workdir', str(grpo[0].parent)]
  return [*where, '--config.grpo.rollout.text.top_k=1']


@pytest.fixture(scope='module')
def answer(grpo, about):
  """What it answers to 3+4=."""
  folder = grpo[0].parent
  asked = {'messages': [{'role': 'user', 'content': '3+4='}], 'answer': '7'}
  (folder / 'asked.jsonl').write_text(json.dumps(asked))
  options = [f'--prompts={folder}/asked.jsonl', '--max_text_tokens=6', f'--out={folder}/out']
  assert main.main(['vargrl', 'sample', *about, *options]) == 0
  (record,) = map(json.loads, (folder / 'out' / 'answers.jsonl').read_text().splitlines())
  assert record['messages'][0] == {'role': 'user', 'content': '3+4='} and not record['images']
  return record['messages'][1]['content']


def test_it_answers_in_text(answer, grpo):
  config = experiment.load(SMOKE)
  config.grpo.rollout.text.top_k = 1
  ask = lambda **options: chat.draw(config, grpo[0].parent, ['3+4='], **options)
  assert answer and ask(max_text_tokens=(6,)) == [[answer]]
  assert ask()[0][0].startswith(answer)  # 64 tokens, and no picture


def test_transformers_reads_the_exported_folder_and_says_the_same(answer, about, tmp_path, capsys):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  out = tmp_path / 'released'
  assert main.main(['vargrl', 'export', *about, f'--out={out}']) == 0, capsys.readouterr().err
  # AutoTokenizer would take any tokenizer beside the weights of a Qwen2 for Qwen2's.
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  said = [{'role': 'user', 'content': '3+4='}]
  prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
  ids = tokenizer(prompt, add_special_tokens=False, return_tensors='pt')['input_ids']
  with torch.no_grad():
    found = model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=2)
  assert tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer


def test_its_answers_are_judged(about, capsys):
  assert main.main(['vargrl', 'eval', *about]) == 0, capsys.readouterr().err
  found = dict(line.split()[2:] for line in capsys.readouterr().out.splitlines() if 'step' in line)
  assert float(found['sampled/masked']) == 0 and 1 <= float(found['sampled/length']) <= 5
  assert 0 <= float(found['sampled/right']) <= float(found['sampled/right/best']) < 1
