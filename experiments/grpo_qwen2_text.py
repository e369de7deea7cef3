r"""GRPO on Qwen2.5-1.5B-Instruct with a verifiable reward: text alone, through the same loop.

  tpu/run.sh train --config experiments/grpo_qwen2_text.py --workdir bucket/grpo_qwen2_text

v5e:4x4. Needs in weights/ below the current folder Qwen2.5-1.5B-Instruct (the published folder); in
data/ train.jsonl and test.jsonl, records such as {"messages": [{"role": "user", "content": "What is
17 + 25?"}], "answer": "42"}. The reward is 1 where the last number of an answer is the record's.

  --config experiments/grpo_qwen2_text.py:tiny     from nothing, in minutes on two CPU cores
  --config experiments/grpo_qwen2_text.py:smoke    that for two steps

:tiny is a chain: 500 sums of two numbers up to 99 teach a model of 0.6M parameters to be right now
and then; GRPO goes on with what it says itself of others, right or wrong.

Share of held-out sums that are right before and after GRPO, greedy and sampled, about 4 minutes
each:

  seed 0   0.27 -> 0.86   0.19 -> 0.76
  seed 1   0.22 -> 0.82   0.16 -> 0.67
  seed 2   0.26 -> 0.82   0.23 -> 0.75
"""

from ml_collections import ConfigDict

TEXT = dict(size=(), crop='none', vision={})  # no pictures
REWARD = dict(name='rewards.exact_match', weight=1.0, segment='text', mode='number', pattern='')
POOL = dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=256)


def get_config(arg=''):
  if arg in ('tiny', 'smoke'):
    return tiny(smoke=arg == 'smoke')
  if arg:
    raise ValueError(f'grpo_qwen2_text: no variant {arg!r}, expected tiny or smoke')
  c = common()
  c.description = 'GRPO on Qwen2.5-1.5B-Instruct: the reward is whether the answer is right.'
  c.steps, c.save_every = 400, 50
  c.pod, c.mesh = 'v5e:4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.policy = dict(
    name='models.qwen2', size='1.5b', dtype='bfloat16', remat='blocks', attention='splash'
  )
  c.rollout = rollout(max_tokens=512, stop=(151645, 151643))
  c.reference, c.init = True, dict(policy='weights/Qwen2.5-1.5B-Instruct')
  c.objective = grpo(rollouts=16, penalty=0.001)
  c.minibatches, c.accum, c.epochs = 1, 8, 1
  questions = dict(split='', dir='', length=256, tokenizer='weights/Qwen2.5-1.5B-Instruct')
  c.data = prompts(dataset='data/train.jsonl', max_records=0, prompts=64, **questions)
  c.data.threads, c.data.workers = 8, 2
  c.optim.update(peak=1e-6, warmup=10)
  c.evals = dict(
    test=answers(dataset='data/test.jsonl', max_records=1024, every_steps=50, **questions)
  )
  c.evals.test.batch = 64
  return c


def tiny(smoke):
  c = ConfigDict()
  c.title = 'vargrl: sums of two numbers'
  c.chain, c.sft, c.grpo = ('sft', 'grpo'), common(), common()
  c.summary = (('greedy/right', 'higher'), ('sampled/right', 'higher'), ('kl', ''))
  sums = dict(dataset='sums/99', dir='', tokenizer='characters')
  asked = dict(sums, split='test', max_records=512, length=24, every_steps=0)
  for r in (c.sft, c.grpo):
    r.policy = dict(name='models.qwen2', size='tiny')
    r.rollout = rollout(max_tokens=5, stop=(2,))
    r.evals = dict(greedy=answers(**asked), sampled=answers(**asked))
    r.evals.sampled.greedy, r.evals.sampled.per_prompt = False, 4

  r = c.sft
  r.description = '500 sums with their answers, until a small model is right now and then.'
  r.steps, r.save_every = 240, 120
  r.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.0, flip_scales=0),
    loss=dict(scale_weight_power=0.0, segments=(('.*', {}),)),
  )
  source = dict(dataset='sums/99', split='train', dir='', max_records=500, weight=1.0)
  r.data = dict(
    name='data.dialogue.train',
    sources=dict(sums=source),
    batch=16,
    examples_per_row=8,
    length=152,
    max_patches=0,
    max_images=0,
    max_context=0,
    image_tokens=0,
    loss_on='assistant',
    positions='sequential',
    prompt_drop=0.0,
    tokenizer='characters',
    shuffle=True,
    max_unreadable=0.01,
    threads=2,
    workers=0,
    **TEXT,
  )
  r.optim.update(peak=2e-3, warmup=50)

  r = c.grpo
  r.description = 'GRPO: of 16 answers to a sum, the right ones against the wrong ones.'
  r.steps, r.save_every = 160, 40
  r.reference, r.init = True, dict(policy='sft')
  r.objective = grpo(rollouts=16, penalty=0.0)
  r.data = prompts(split='train', max_records=100_000, prompts=64, length=24, **sums)
  r.minibatches = 4
  r.optim.update(peak=5e-4, warmup=5, schedule='cosine', end=0.1)
  if smoke:
    for r in (c.sft, c.grpo):
      r.steps, r.save_every, r.optim.warmup = 2, 1, 1
      r.policy.update(size='smoke', depth=1, sections=())
      r.evals = dict(sampled=dict(r.evals.sampled, max_records=8))
    c.sft.data.update(batch=8)
    c.grpo.data.prompts, c.grpo.objective.collect.rollouts, c.grpo.minibatches = 8, 4, 1
  return c


def rollout(max_tokens, stop):
  """How answers are sampled."""
  return dict(
    plan=('text',),
    weights='gathered',
    text=dict(kind='text', max_tokens=max_tokens, temperature=1.0, top_k=0, top_p=0.0, stop=stop),
  )


def grpo(rollouts, penalty):
  """The objective of both sizes."""
  return ConfigDict(
    dict(
      name='objectives.grpo',
      collect=dict(
        rollouts=rollouts,
        old_logp='trainer',
        std='group',
        eps=1e-4,
        kl_reward=0.0,
        reward_mix='sum',
        resample=0,
        mask={},
        rewards=dict(right=dict(REWARD)),
        pool=dict(POOL),
      ),
      loss=dict(
        level='token',
        clip=0.2,
        clip_high=0.28,
        penalty=penalty,
        estimator='k3',
        scale_weight_power=0.0,
        first_scale=0,
        last_scale=-1,
        segments=(('.*', {}),),
      ),
    )
  )


def prompts(**options):
  """Questions, and what their records say besides."""
  more = dict(prefill_image=False, max_patches=0, shuffle=True, max_unreadable=0.01)
  return ConfigDict(
    dict(name='data.dialogue.prompts', threads=2, workers=0, **more, **TEXT, **options)
  )


def answers(**options):
  """The share of questions with the right answer, of which training has none."""
  return ConfigDict(
    dict(
      name='eval.answers',
      max_patches=0,
      prefill_image=False,
      per_prompt=1,
      greedy=True,
      seed=1,
      batch=256,
      rewards=dict(right=dict(REWARD)),
      pool=dict(POOL),
      **TEXT,
      **options,
    )
  )


def common():
  """What every run says alike."""
  r = ConfigDict()
  r.description, r.seed, r.keep = '', 0, 2
  r.steps, r.save_every, r.show_every = 0, 1, 1000000
  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/RUN/profile
  r.profile = ()
  r.pod, r.mesh = 'v5e:1x1', (('data', -1), ('fsdp', 1), ('tensor', 1))
  r.max_replicated_share = 0.02
  r.reference, r.init, r.evals = False, {}, {}
  r.minibatches, r.accum, r.epochs = 1, 1, 1
  r.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=1e-3,
    warmup=10,
    schedule='constant',
    end=1.0,
  )
  r.optim.scale, r.optim.decay = (('.*', 1.0),), (('.*', 0.0),)
  return r
