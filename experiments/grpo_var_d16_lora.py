r"""GRPO of LoRA adapters on VAR-d16: attention and MLP, the pass without adapters as the reference.

  python -m vargrl.main train --config experiments/grpo_var_d16_lora.py --workdir runs/grpo_var_d16_lora

Rank, loss and rate of StyleVAR (https://arxiv.org/abs/2604.21052), with JPEG compressibility as the reward.
The base is frozen: it has no gradient and no moments, and the reference is the base itself, not a copy.
`init` names runs of the same workdir; the policy may be a run without adapters, or one with them.

  --config experiments/grpo_var_d16_lora.py:smoke     tiny sizes and random weights, two steps
"""
from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'GRPO of LoRA adapters on VAR-d16: minus the kilobytes of a real JPEG are the reward.'
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400, 50, 50, 2
  c.mesh = (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.replicated_at_most = 0.15  # one side of an adapter has no axis that fsdp shards: 11 % at rank 256

  c.policy = dict(name='models.var', size='d16', dtype='bfloat16', remat='blocks',
                  lora_rank=256, lora_alpha=512.)
  c.tokenizer = dict(name='tokenizers.vq', size='var')
  c.rollout = dict(name='rollout.next_scale', guidance=0.0, temperature=1.0, top_k=900, top_p=0.96,
                   record='cond')
  c.reference = True
  c.init = dict(policy='', tokenizer='')

  c.objective = dict(name='objectives.grpo')
  c.objective.collect = dict(rollouts=16, old='trainer', std='group', eps=1e-4, kl_reward=0.0)
  c.objective.collect.rewards = dict(jpeg=dict(name='rewards.jpeg', weight=1.0, quality=90, sign=1))
  c.objective.collect.pool = dict(max_failed=0.1, workers=4, timeout=60.0, retries=1, chunk=16)
  c.objective.loss = dict(level='token', clip=0.2, clip_high=0.2, kl=0.1, estimator='k3', alpha=0.7,
                          first=0, last=9)
  c.minibatches, c.accum, c.epochs = 1, 4, 1

  c.data = dict(name='data.prompts', classes=1000, prompts=16)
  # 5e-5 let the KL explode within a hundred steps of their run.
  c.optim = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, clip=1.0, peak=1e-5, warmup=10,
                 schedule='constant', end=1.0)
  c.optim.scale, c.optim.decay = (('/lora_', 1.0), ('.*', None)), (('.*', 0.0),)
  c.evals = dict(samples=dict(name='eval.samples', every=50, classes=8, each=8, seed=0))

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.tokenizer.size = 'smoke'
    c.policy.lora_rank, c.policy.lora_alpha, c.rollout.top_k, c.accum = 4, 8., 16, 1
    c.data.classes, c.data.prompts, c.objective.collect.rollouts = 10, 8, 4
    c.objective.loss.last, c.optim.warmup = 2, 1
    c.objective.collect.pool.workers = 1
    c.evals.samples.classes, c.evals.samples.each = 2, 2
  elif arg: raise ValueError(f'grpo_var_d16_lora: no variant {arg!r}, expected smoke')
  return c
