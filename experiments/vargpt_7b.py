r"""VARGPT-v1.1 at 7B + 2B: its chain of supervised stages, DPO and editing, from Qwen2-VL and
Infinity.

  tpu/run.sh train --config experiments/vargpt_7b.py --workdir bucket/vargpt_7b

v5p:4x4x4. The stages are those of the paper's Table 1 (https://arxiv.org/abs/2504.02949), with its
learning rates, batches (of DPO counted in pictures) and steps; the tower's merger stays as it is,
as in the released code. Needs in weights/ below the current folder Qwen2-VL-7B-Instruct, a folder
of Hugging Face, infinity_2b_reg.pth and infinity_vae_d32reg.pth; in data/ the JSON files named
below, in the released schemas: see vargrl/data/dialogue/files.py.

What differs from the released code, which has its faults (see README): M-RoPE positions everywhere,
losses of the assistant's words alone, bits weighed by scale, prompts dropped for guidance, for both
sides of DPO the same bits turned.

  --config experiments/vargpt_7b.py:1024      and then supervised tuning at 1024x1024, on v5p:4x4x8
  --config experiments/vargpt_7b.py:0.5b      Qwen2.5-0.5B's size and Infinity's smallest, from
  nothing
  --config experiments/vargpt_7b.py:smoke     every run for two steps, tiny, on scenes
"""

from ml_collections import ConfigDict

VISION = dict(patch=14, merge=2, frames=2, min_pixels=56 * 56, max_pixels=512 * 512)
NOTHING = (
  151644,
  8948,
  198,
  2610,
  525,
  264,
  10950,
  17847,
  13,
  151645,
  198,
  151644,
  872,
  198,
  151645,
  198,
  151644,
  77091,
  198,
  151657,
)  # the chat template with an empty message, to where a picture begins
WORDS, PROJECTORS, DRAWER = 'policy/lm', 'policy/(into|out|start)', 'policy/(drawer|into|out|start)'
# name: (learning rate, steps, pixels, rows of a batch, records of a row, tokens of a row, patches,
# what is trained)
STAGES = dict(
  stage1=(1e-3, 2_000, 256, 256, 4, 2560, 0, PROJECTORS),
  stage2=(5e-5, 3_100, 256, 128, 2, 4096, 8192, WORDS),
  sft256=(5e-5, 40_000, 256, 256, 4, 2560, 0, DRAWER),
  sft512=(5e-5, 30_000, 512, 512, 1, 2688, 0, DRAWER),
  edit=(5e-5, 2_000, 512, 512, 1, 3328, 1600, '.*'),
  sft1024=(5e-5, 10_000, 1024, 256, 1, 10752, 0, DRAWER),
)
PREFERENCES = dict(dpo256=(5_000, 256), dpo512=(3_000, 512))
BEFORE = dict(
  stage2='stage1',
  sft256='stage2',
  dpo256='sft256',
  sft512='dpo256',
  dpo512='sft512',
  edit='dpo512',
  sft1024='edit',
)
SCALES, IMAGE_TOKENS = {256: '0.06M', 512: '0.25M', 1024: '1M'}, {256: 521, 512: 2521, 1024: 10521}


def get_config(arg=''):
  c = ConfigDict()
  c.title, c.summary = 'VARGPT-v1.1, 7B + 2B', ()
  c.chain = ('stage1', 'stage2', 'sft256', 'dpo256', 'sft512', 'dpo512', 'edit')
  if arg == '1024':
    c.chain += ('sft1024',)
  for name in c.chain:
    c[name] = r = common()
    r.description = f'VARGPT-v1.1: {name}'
    pixels = PREFERENCES[name][1] if name in PREFERENCES else STAGES[name][2]
    r.policy = dict(
      name='models.unified',
      size='vargpt-v1.1',
      scales=SCALES[pixels],
      dtype='bfloat16',
      remat='blocks',
      attention='splash',
    )
    r.tokenizer = dict(
      name='tokenizers.bsq', size='d32', scales=SCALES[pixels], dtype='float32'
    )  # a bit is a sign
    r.rollout = dict(
      plan=('text', 'image'),
      weights='sharded',
      text=dict(kind='text', max_tokens=128, temperature=1.0, top_k=1, top_p=0.0, stop=(151645,)),
      image=dict(kind='bits', guidance=3.0, temperature=0.5, top_p=0.97, logp_of='cond'),
      uncond_prompt=NOTHING,
      reference_impl=False,
    )
    r.init = dict(
      policy=BEFORE.get(
        name,
        dict(
          lm='weights/Qwen2-VL-7B-Instruct',
          vision='weights/Qwen2-VL-7B-Instruct',
          drawer='weights/infinity_2b_reg.pth',
        ),
      ),
      tokenizer='weights/infinity_vae_d32reg.pth',
    )
    shared = dict(
      size=(pixels, pixels),
      crop='cover',
      tokenizer='weights/Qwen2-VL-7B-Instruct',
      vision=dict(VISION),
      shuffle=True,
      max_unreadable=0.01,
      threads=8,
      workers=4,
    )
    if name in PREFERENCES:
      preferences(r, name, shared)
    else:
      stage(r, name, pixels, shared)

  if arg == '0.5b':
    c.title = 'VARGPT-v1.1 at half a billion'
    for name in c.chain:
      c[name].policy.size, c[name].pod = '0.5b', 'v5e:4x4'
      c[name].mesh = (('data', 1), ('fsdp', -1), ('tensor', 1))
      if name == 'stage1':
        c[name].init = dict(tokenizer='weights/infinity_vae_d32reg.pth')
      if name == 'stage1':
        c[name].optim.scale = (('.*', 1.0),)
  elif arg == 'smoke':
    for name in c.chain:
      smoke(c[name], name)
  elif arg == '1024':
    c.sft1024.pod, c.sft1024.mesh = 'v5p:4x4x8', (('data', 4), ('fsdp', -1), ('tensor', 1))
  elif arg:
    raise ValueError(f'vargpt_7b: no variant {arg!r}, expected 1024, 0.5b or smoke')
  return c


def stage(r, name, pixels, shared):
  """Supervised tuning on packed dialogues."""
  peak, r.steps, _, batch, examples_per_row, length, patches, trained = STAGES[name]
  r.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.1, flip=0.3, flip_scales=13),
    loss=dict(
      scale_weight_power=0.5, segments=(('text', dict(weight=1.0)), ('image', dict(weight=3.0)))
    ),
  )
  r.data = dict(
    name='data.dialogue.train',
    batch=batch,
    examples_per_row=examples_per_row,
    length=length,
    max_patches=patches,
    max_images=examples_per_row,
    max_context=1024 if patches else 512,
    image_tokens=IMAGE_TOKENS[pixels],
    loss_on='assistant',
    positions='mrope',
    prompt_drop=0.1,
    **shared,
    sources={name: dict(dataset=f'data/{name}.json', split='', dir='', max_records=0, weight=1.0)},
  )
  r.optim.peak, r.optim.scale = (
    peak,
    ((trained, 1.0), ('.*', None)) if trained != '.*' else (('.*', 1.0),),
  )


def preferences(r, name, shared):
  """DPO on pairs of pictures, against the model that it begins with."""
  r.steps, r.reference = PREFERENCES[name][0], True
  r.objective = dict(
    name='objectives.dpo',
    collect=dict(flip=0.3, flip_scales=13, same_flips=True),
    loss=dict(
      kind='sigmoid',
      beta=0.1,
      smoothing=0.0,
      scale_weight_power=0.5,
      segments=(('text', dict(weight=0.0)), ('image', dict(weight=1.0))),
    ),
  )
  r.data = dict(
    name='data.dialogue.pairs',
    dataset=f'data/{name}.json',
    split='',
    dir='',
    max_records=0,
    prompts=192,
    length=128,
    max_patches=0,
    max_answer=128,
    **shared,
  )
  r.optim.peak, r.optim.scale = 1e-6, ((DRAWER, 1.0), ('.*', None))


def smoke(r, name):
  """Two steps at tiny sizes, from nothing."""
  r.steps, r.save_every, r.mesh, r.optim.warmup = (
    2,
    1,
    (('data', -1), ('fsdp', 1), ('tensor', 1)),
    1,
  )
  r.policy.update(size='smoke', scales='1x1 2x2 4x4', dtype='float32', attention='dense')
  r.tokenizer.update(size='smoke-square', mults=(1, 1, 1, 1), scales='1x1 2x2 4x4', dtype='float32')
  r.rollout.uncond_prompt = (1, 154, 10, 2, 10, 1, 62, 10, 6)
  r.rollout.text.update(max_tokens=48, stop=(2,))
  r.init = dict(policy=BEFORE[name]) if name in BEFORE else {}
  r.data.update(
    size=(32, 32),
    tokenizer='scenes',
    workers=0,
    vision=dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024),
  )
  if name in PREFERENCES:
    r.data.update(
      dataset='scenes/small/32/pairs',
      split='train',
      max_records=64,
      prompts=8,
      length=48,
      max_answer=48,
    )
  else:
    kind = dict(stage2='understanding', edit='editing').get(name, 'generation')
    r.data.update(
      batch=8,
      examples_per_row=2,
      length=256,
      max_patches=128,
      max_images=2,
      max_context=72,
      image_tokens=21,
      sources={
        name: dict(
          dataset=f'scenes/small/32/{kind}', split='train', dir='', max_records=64, weight=1.0
        )
      },
    )


def common():
  """What every run of the chain says alike."""
  r = ConfigDict()
  r.description, r.seed, r.keep, r.profile = '', 0, 2, ()
  r.steps, r.save_every, r.show_every = 0, 500, 1_000_000
  # Weights in 32 parts: XLA gathers 64 as a sum over all chips, which sends twice the bytes.
  r.pod, r.mesh, r.max_replicated_share = (
    'v5p:4x4x4',
    (('data', 2), ('fsdp', -1), ('tensor', 1)),
    0.02,
  )
  r.reference, r.init, r.evals = False, {}, {}
  r.minibatches, r.accum, r.epochs = 1, 1, 1
  r.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=0.0,
    warmup=200,
    schedule='cosine',
    end=0.0,
  )
  r.optim.scale, r.optim.decay = (('.*', 1.0),), (('.*', 0.0),)
  return r
