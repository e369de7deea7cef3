r"""From nothing to a model that reads, answers, draws and edits: the world `scenes` at 32x32.

  python -m vargrl.main train --config experiments/scenes.py --workdir runs/scenes

A chain: a bitwise tokenizer; a language model with a tower that learns to answer questions about
pictures; all tasks together, the decoder that draws included; and DPO on pairs of the model's own
pictures, as the world's checker judges them. Before it draws or edits, the model says what will lie
where: words are sampled one after the other, so that what they decide fits together. Everything is
scored on scenes that training has no like of; a picture that shows more than its caption says is
wrong. Measured on two CPU cores, which had other work besides (3.4 million parameters, percent):

  after       steps  minutes  answers  pictures  unguided  edits
  tokenizer    1000        8        0
  read         2000       23     64.1         0                0
  draw         5000       60     71.6      56.9      45.8   13.2
  dpo           150       11     71.6      61.4      55.7   16.5    seed 0
                                 71.6      61.0      55.7   16.1    seed 1
                                 71.6      62.0      57.4   16.9    seed 2

On 2,100 captions, each drawn by both with the same keys, DPO is better than `draw` by 5.5, 4.8 and
5.5 points (standard error 0.7). It trains what draws alone: answers stay as they are to the letter.
Right are 99 % of single objects, 73 of counts, 51 of places, 43 of colours bound to two objects and
13 of words.

  --config experiments/scenes.py:grpo      GRPO on the same prompts, by the same judge, in the place
  of DPO
  --config experiments/scenes.py:smoke     every run for two steps; :smoke-grpo likewise
"""

from ml_collections import ConfigDict

SCALES, IMAGE_TOKENS = (1, 2, 4), 21
VISION = dict(patch=4, merge=2, frames=1, min_pixels=32 * 32, max_pixels=32 * 32)
IMAGES = dict(size=(32, 32), tokenizer='scenes', vision=VISION)


def get_config(arg=''):
  c = ConfigDict()
  c.title = 'vargrl: a unified model of scenes'
  c.chain = ('tokenizer', 'read', 'draw', 'grpo' if arg.endswith('grpo') else 'dpo')
  c.summary = (
    ('understanding/overall', 'higher'),
    ('generation/overall', 'higher'),
    ('editing/overall', 'higher'),
  )
  for name in ('tokenizer', 'read', 'draw', 'dpo', 'grpo'):
    c[name] = common()
  tokenizer = dict(
    name='tokenizers.bsq', size='small', width=32, scales=SCALES, channels=8, patch=2
  )

  r = c.tokenizer
  r.description = 'A bitwise multi-scale autoencoder learns pictures of 32x32.'
  r.steps, r.save_every, r.show_every = 1000, 500, 500
  r.policy = dict(tokenizer)
  r.objective = dict(name='objectives.tokenizer', collect={})
  r.objective.loss = dict(l1=1.0, l2=1.0, quantizer=0.2, perceptual=0.0, adversarial=0.0)
  r.data = dict(
    name='data.source',
    dataset='scenes/32',
    split='train',
    batch=32,
    size=32,
    crop='none',
    flip=False,
    shuffle=True,
    max_unreadable=0.01,
    dir='',
    threads=2,
    workers=0,
  )
  r.optim.update(peak=2e-3, warmup=50, schedule='cosine', end=0.05)

  policy = dict(name='models.unified', size='small', scales=SCALES)
  # nothing: an empty message, and the beginning of a picture, in the tokens of scenes.
  rollout = dict(
    plan=('image',),
    weights='gathered',
    text=dict(kind='text', max_tokens=48, temperature=1.0, top_k=0, top_p=0.0, stop=(2,)),
    image=dict(kind='bits', guidance=2.0, temperature=1.0, top_p=0.0, logp_of='cond'),
    uncond_prompt=(1, 154, 10, 2, 10, 1, 62, 10, 6),
    reference_impl=False,
  )
  sources = {
    kind: dict(
      dataset=f'scenes/small/32/{kind}', split='train', dir='', max_records=100_000, weight=weight
    )
    for kind, weight in dict(
      understanding=2.0, description=2.0, text=1.0, generation=6.0, editing=4.0
    ).items()
  }
  rows = dict(
    name='data.dialogue.train',
    batch=16,
    examples_per_row=3,
    length=240,
    max_patches=192,
    max_images=3,
    max_context=72,
    image_tokens=IMAGE_TOKENS,
    crop='cover',
    loss_on='assistant',
    positions='mrope',
    prompt_drop=0.1,
    shuffle=True,
    max_unreadable=0.01,
    threads=2,
    workers=0,
    **IMAGES,
  )
  scored = {
    task: dict(
      name='eval.scenes',
      every_steps=0,
      task=task,
      world='small',
      pixels=32,
      split='test',
      max_records=records,
      max_text_tokens=12 if task == 'question' else 48,
      greedy=task == 'question',
      guidance=2.0,
      length=48,
      max_patches=64,
      batch=50,
      seed=1,
      strict=True,
      show=16,
      **IMAGES,
    )
    for task, records in dict(question=350, generation=1050, editing=350).items()
  }
  evals = dict(
    understanding=scored['question'], generation=scored['generation'], editing=scored['editing']
  )

  r = c.read
  r.description = 'The language model and the tower learn to answer questions, and to speak.'
  r.steps, r.save_every = 2000, 250
  r.policy, r.tokenizer, r.rollout, r.init = (
    dict(policy),
    dict(tokenizer),
    dict(rollout),
    dict(tokenizer='tokenizer'),
  )
  r.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.1, flip_scales=3),
    loss=dict(scale_weight_power=0.5, segments=(('text', dict(weight=1.0)),)),
  )
  r.data = dict(
    rows,
    examples_per_row=4,
    length=256,
    sources={kind: sources[kind] for kind in ('understanding', 'description', 'text')},
    max_patches=256,
    max_images=0,
  )
  r.optim.scale = (('policy/(drawer|into|out|start)', None), ('.*', 1.0))
  r.optim.update(peak=2e-3, warmup=100, schedule='cosine', end=0.1)
  r.evals = dict(understanding=dict(scored['question']))

  r = c.draw
  r.description = 'All tasks together: answers, pictures from captions, edited pictures.'
  r.steps, r.save_every, r.show_every = 5000, 250, 1000
  r.policy, r.tokenizer, r.rollout = dict(policy), dict(tokenizer), dict(rollout)
  r.init = dict(policy='read', tokenizer='tokenizer')
  r.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.1, flip_scales=3),
    loss=dict(
      scale_weight_power=0.5, segments=(('text', dict(weight=1.0)), ('image', dict(weight=3.0)))
    ),
  )
  r.data = dict(rows, sources=dict(sources))
  r.optim.update(peak=2e-3, warmup=100, schedule='cosine', end=0.05)
  r.evals = dict(evals)

  # Of what the model draws itself, the checker's judgement teaches; what reads is left alone. Where
  # what lies is given in words with each caption: only drawing is trained, so all rows of a group
  # shall differ in that alone.
  for name in ('dpo', 'grpo'):
    r = c[name]
    r.steps, r.save_every, r.show_every = 150, 25, 25
    # Without guidance, as the log-probabilities are: pictures of the very policy that is trained.
    r.policy, r.tokenizer, r.rollout = (
      dict(policy),
      dict(tokenizer),
      dict(rollout, image=dict(rollout['image'], guidance=1.0)),
    )
    r.reference, r.init = True, dict(policy='draw', tokenizer='tokenizer')
    r.objective = dict(name=dict(dpo='objectives.dpo_groups', grpo='objectives.grpo')[name])
    r.objective.collect = dict(
      rollouts=8,
      rewards=dict(
        scenes=dict(name='rewards.scenes', weight=1.0, world='small', strict=True, partial=True)
      ),
      pool=dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=64),
    )
    r.data = dict(
      name='data.dialogue.prompts',
      dataset='scenes/small/32/generation',
      split='train',
      dir='',
      max_records=100_000,
      prompts=64,
      length=64,
      max_patches=0,
      prefill_image=True,
      crop='cover',
      shuffle=True,
      max_unreadable=0.01,
      threads=2,
      workers=0,
      **IMAGES,
    )
    r.optim.scale = (('policy/(drawer|into|out)', 1.0), ('.*', None))
    r.optim.update(peak=1.5e-4, warmup=5, schedule='cosine', end=0.1)
    r.optim.decay = (('.*', 0.0),)
    r.evals = dict(evals, unguided=dict(scored['generation'], guidance=1.0))
  c.dpo.description = (
    'DPO: of the pictures that the model draws of a layout, the best against the worst.'
  )
  c.dpo.objective.loss = dict(
    kind='sigmoid_norm', beta=1.0, smoothing=0.0, scale_weight_power=0.5, segments=(('.*', {}),)
  )
  c.grpo.description = (
    'GRPO: of the pictures that the model draws of a layout, each against their mean.'
  )
  c.grpo.objective.collect.update(
    old_logp='trainer',
    std='group',
    eps=1e-4,
    kl_reward=0.0,
    reward_mix='sum',
    resample=0,
    mask=dict(),
  )
  c.grpo.objective.loss = dict(
    level='token',
    clip=0.2,
    clip_high=0.28,
    penalty=0.01,
    estimator='exact',
    scale_weight_power=0.5,
    first_scale=0,
    last_scale=-1,
    segments=(('.*', {}),),
  )

  if arg in ('smoke', 'smoke-grpo'):
    smoke(c)
  elif arg not in ('', 'grpo'):
    raise ValueError(f'scenes: no variant {arg!r}, expected grpo, smoke or smoke-grpo')
  for name in ('dpo', 'grpo'):
    if name not in c.chain:
      del c[name]
  return c


def smoke(c):
  """Two steps at tiny sizes. Fewer programs to compile: all tasks at once from nothing, and one
  look at the end.
  """
  for name in ('tokenizer', 'draw', 'dpo', 'grpo'):
    r = c[name]
    r.steps, r.save_every, r.optim.warmup = 2, 1, 1
    (r.policy if name == 'tokenizer' else r.tokenizer).update(
      size='smoke-square', mults=(1, 1, 1, 1), channels=4, patch=1
    )
    if name != 'tokenizer':
      r.policy.size = 'smoke'
    for e in r.evals.values():
      e.max_records, e.max_text_tokens = 8, min(e.max_text_tokens, 2)
  c.tokenizer.data.batch = 8
  c.draw.data.update(batch=8, examples_per_row=2)
  c.chain, c.draw.init, c.draw.evals = (
    ('tokenizer', 'draw', c.chain[-1]),
    dict(tokenizer='tokenizer'),
    {},
  )
  del c.read
  for r in (c.dpo, c.grpo):
    r.data.prompts, r.objective.collect.rollouts = 8, 2
    r.evals = {'editing': r.evals['editing']}


def common():
  """What every run of the chain says alike."""
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
  r.optim.scale = (('.*', 1.0),)
  r.optim.decay = (
    ('/(b|bias|scale|temperature|start|levels|ada|uncond|text_norm|pool_q)$', 0.0),
    ('.*', 0.05),
  )
  return r
