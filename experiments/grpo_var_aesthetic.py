r"""GRPO on VAR with the improved LAION aesthetic predictor as the reward
(https://arxiv.org/abs/2505.23331).

  python -m vargrl.main train --config experiments/grpo_var_aesthetic.py --workdir
  runs/grpo_var_aesthetic

v5e:4x4, about 10 min and with d30 40 min (from the FLOPs of a step at 40 % utilisation; not
measured). Expect rewards/aesthetic to rise from the first tens of steps on, entropy to fall slowly,
kl to grow and level off. The score is affine in the embedding and has no ceiling: monitor/clip
falling, or fid rising fast, says that it is exploited.

Published files, in weights/ below the current folder (what is missing is told with the command that
downloads it): var_d16.pth or var_d30.pth, vae_ch160v4096z32.pth, clip-vit-large-patch14/,
sac+logos+ava1-l14-linearMSE.pth, pt_inception-2015-12-05-6726825d.pth,
VIRTUAL_imagenet256_labeled.npz.

  --config experiments/grpo_var_aesthetic.py:d30       two billion parameters
  --config experiments/grpo_var_aesthetic.py:d36       512x512 pixels, 2.3 billion, v5p:2x2x2;
  var_d36.pth,
                                                       VIRTUAL_imagenet512.npz
  --config experiments/grpo_var_aesthetic.py:lora      adapters of rank 64; the model without them
  is the reference
  --config experiments/grpo_var_aesthetic.py:smoke     tiny sizes and random weights, two steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'GRPO on VAR: the aesthetic score is the reward.'
  c.summary = (('reward', 'higher'), ('monitor/clip', ''), ('fid/fid', 'lower'), ('kl', ''))
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400, 50, 50, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5e:4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(
    name='models.var',
    size='d16',
    dtype='bfloat16',
    remat='blocks',
    attention='dense',
    lora_rank=0,
    lora_alpha=0.0,
  )
  c.tokenizer = dict(name='tokenizers.vq', size='var')
  # Guided rollouts, log-probabilities of the same guided policy, the unconditional branch held
  # still.
  c.rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(
      kind='scales',
      guidance=2.5,
      guidance_ramp=True,
      temperature=1.0,
      top_k=900,
      top_p=0.96,
      logp_of='guided_stopgrad',
    ),
  )
  c.reference = True
  c.init = dict(policy='weights/var_d16.pth', tokenizer='weights/vae_ch160v4096z32.pth')

  c.objective = dict(name='objectives.grpo')
  c.objective.collect = collect = ConfigDict(
    dict(
      rollouts=16,
      old_logp='trainer',
      std='group',
      eps=1e-4,
      kl_reward=0.0,
      reward_mix='sum',
      resample=0,
      mask=dict(),
      rewards=dict(),
    )
  )
  collect.rewards.aesthetic = dict(
    name='rewards.aesthetic',
    weight=1.0,
    size='l14',
    dtype='bfloat16',
    file='weights/clip-vit-large-patch14',
    head='weights/sac+logos+ava1-l14-linearMSE.pth',
  )
  collect.pool = dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=16)
  # scale_weight_power 0.7: without it the two finest scales own 62 % of the gradient.
  c.objective.loss = dict(
    level='token',
    clip=0.2,
    clip_high=0.28,
    penalty=0.02,
    estimator='exact',
    scale_weight_power=0.7,
    first_scale=0,
    last_scale=-1,
    segments=(('.*', {}),),
  )
  c.minibatches, c.accum, c.epochs = 1, 4, 1

  c.data = dict(name='data.prompts', classes=1000, prompts=16)
  c.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=1e-6,
    warmup=10,
    schedule='constant',
    end=1.0,
  )
  c.optim.scale, c.optim.decay = (('.*', 1.0),), (('.*', 0.0),)

  c.evals = dict(
    samples=dict(name='eval.samples', every_steps=50, classes=8, per_class=8, seed=0, preset='')
  )
  # With the published sampler, and by a reward that is not trained on: what is gained must not be
  # lost there.
  c.evals.fid = dict(
    name='eval.fid',
    every_steps=200,
    images=10_000,
    seed=0,
    batch=16,
    preset='var',
    size='fid',
    weights='weights/pt_inception-2015-12-05-6726825d.pth',
    npz='weights/VIRTUAL_imagenet256_labeled.npz',
    dataset='',
    split='',
    pixels=256,
    crop='center',
    dir='',
    limit=0,
  )
  c.evals.monitor = dict(
    name='eval.rewards',
    every_steps=50,
    classes=50,
    per_class=4,
    seed=0,
    batch=16,
    preset='var',
    rewards=dict(),
    pool=dict(collect.pool),
  )
  c.evals.monitor.rewards.clip = dict(
    name='rewards.clip',
    weight=1.0,
    size='l14',
    dtype='float32',
    file='weights/clip-vit-large-patch14',
    tokenizer='',
    names='imagenet',
    template='a photo of a {class}',
    scale=100.0,
  )

  if arg == 'd30':
    c.policy.size, c.init.policy = 'd30', 'weights/var_d30.pth'
    c.data.prompts, c.accum = (
      8,
      8,
    )  # a v5e has room for the cache of 8 images and the gathered weights
  elif arg == 'd36':
    c.pod, c.policy.size, c.tokenizer.size, c.init.policy = (
      'v5p:2x2x2',
      'd36-512',
      'var-512',
      'weights/var_d36.pth',
    )
    c.data.prompts, c.accum = 8, 16  # the cache of an image and its unguided twin is 1.5 GB
    c.policy.attention = 'splash'  # without the 2240 x 2240 logits of every head
    c.evals.fid.update(npz='weights/VIRTUAL_imagenet512.npz', pixels=512)
  elif arg == 'lora':
    # StyleVAR (https://arxiv.org/abs/2604.21052) saw 1e-5 last, and 5e-5 explode within a hundred
    # steps, at rank 256.
    c.policy.lora_rank, c.policy.lora_alpha = 64, 128.0
    c.optim.peak, c.optim.scale = 1e-5, (('/lora_', 1.0), ('.*', None))
  elif arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.tokenizer.size = 'smoke'
    c.init, c.accum = dict(policy='', tokenizer=''), 1
    c.data.classes, c.data.prompts, collect.rollouts = 10, 8, 4
    c.optim.warmup = 1
    tiny = dict(size='smoke', file='', head='', names='digits')
    for reward in (*collect.rewards.values(), *c.evals.monitor.rewards.values()):
      reward.update({k: v for k, v in tiny.items() if k in reward})
    c.evals.samples.update(classes=2, per_class=2)
    del c.evals.fid  # Inception alone compiles longer than all the rest
    c.evals.monitor.update(classes=2, per_class=2, preset='')
  elif arg:
    raise ValueError(f'grpo_var_aesthetic: no variant {arg!r}, expected d30, d36, lora or smoke')
  return c
