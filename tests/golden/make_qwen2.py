"""Writes tests/golden/qwen2.npz and qwen2.json with transformers:

python tests/golden/make_qwen2.py     # needs torch, transformers 5, numpy, pillow
"""

import json
import pathlib

import numpy as np
import qwen2_golden as rule
import torch
import transformers
from transformers import (
  Qwen2Config,
  Qwen2ForCausalLM,
  Qwen2VLConfig,
  Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

HERE = pathlib.Path(__file__).parent


def described(c, **more):
  return dict(
    hidden_size=c['width'],
    num_hidden_layers=c['depth'],
    num_attention_heads=c['heads'],
    num_key_value_heads=c['kv_heads'],
    intermediate_size=c['mlp'],
    vocab_size=c['vocab'],
    rms_norm_eps=c.get('eps', 1e-6),
    attn_implementation='eager',
    rope_parameters=dict(rope_type='default', rope_theta=c.get('theta', 1e6), **more),
  )


def filled(model):
  """The model with weights by its keys, and {key: shape} of those that are not tied."""
  tied = model.config.tie_word_embeddings
  state = {
    key: x for key, x in model.state_dict().items() if not (tied and key == 'lm_head.weight')
  }
  model.load_state_dict(
    {key: torch.from_numpy(rule.weights(key, x.shape)) for key, x in state.items()}, strict=False
  )
  model.tie_weights()
  return model.eval(), {key: list(x.shape) for key, x in state.items()}


def text(arrays, about):
  for name, c in rule.TEXT.items():
    model, about[name] = filled(
      Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=c['tied'], **described(c)))
    )
    t_BL = torch.from_numpy(rule.tokens(c['vocab'])).long()
    mask_BL = torch.arange(t_BL.shape[1])[None] < torch.tensor(rule.LENGTHS)[:, None]
    logits = model(t_BL, attention_mask=mask_BL.long()).logits
    print(name, 'logits', logits.std())
    arrays[f'{name}_logits'] = logits.numpy()


def greedy(about):
  c = rule.TEXT['untied']
  model, _ = filled(Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **described(c))))

  def run(prompt, stop):
    t_1L = torch.tensor([[*prompt]])
    out = model.generate(
      t_1L,
      attention_mask=torch.ones_like(t_1L),
      max_new_tokens=rule.NEW,
      do_sample=False,
      eos_token_id=stop,
      pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()

  endless = [run(prompt, None) for prompt in rule.PROMPTS]
  stop = [endless[0][5], 95]
  about['greedy'] = dict(stop=stop, rows=[run(prompt, stop) for prompt in rule.PROMPTS])
  print('greedy', endless, about['greedy'])


def pictures(arrays):
  inputs = []
  for i, (size, options) in enumerate(rule.PICTURES.items()):
    names = {'min_pixels': 'shortest_edge', 'max_pixels': 'longest_edge'}
    bounds = Qwen2VLImageProcessorPil.size | {names[key]: value for key, value in options.items()}
    out = Qwen2VLImageProcessorPil(size=bounds)(images=[rule.picture(*size)], return_tensors='pt')
    arrays |= {
      f'patches_{i}': out['pixel_values'][::3, ::89].numpy(),
      f'grid_{i}': out['image_grid_thw'][0].numpy(),
    }
    inputs.append((out['pixel_values'], out['image_grid_thw']))
    print('picture', size, out['image_grid_thw'].tolist())
  return inputs[:2]


def vision_language(arrays, about, images):
  c, v = rule.LM, rule.VISION
  config = Qwen2VLConfig(
    text_config=described(c, mrope_section=[*c['sections']]),
    tie_word_embeddings=False,
    image_token_id=rule.PAD,
    vision_start_token_id=rule.START,
    vision_end_token_id=rule.END,
    video_token_id=91,
    vision_config=dict(
      depth=v['depth'],
      embed_dim=v['width'],
      num_heads=v['heads'],
      hidden_size=v['out'],
      mlp_ratio=4,
    ),
  )
  config._attn_implementation = 'eager'
  model, about['vl'] = filled(Qwen2VLForConditionalGeneration(config))
  counts = [int(grid.prod()) // 4 for _, grid in images]
  rows = rule.dialogues(counts)
  t_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
  for i, row in enumerate(rows):
    t_BL[i, : len(row)] = torch.tensor(row)
  mask_BL = (
    torch.arange(t_BL.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
  ).long()
  pixels, grids = (torch.cat([images[i][j] for i in (0, 1, 1)]) for j in (0, 1))
  kinds = (t_BL == rule.PAD).int()
  out = model(
    input_ids=t_BL,
    attention_mask=mask_BL,
    pixel_values=pixels,
    image_grid_thw=grids,
    mm_token_type_ids=kinds,
  )
  seen = model.model.visual(pixels, grid_thw=grids).pooler_output
  positions, _ = model.model.get_rope_index(
    t_BL, mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=mask_BL
  )
  print('vl logits', out.logits.std(), 'image', seen.std(), positions[:, 0].tolist())
  arrays |= {
    'vl_logits': out.logits.numpy(),
    'vl_image': seen.numpy(),
    'vl_positions': positions.numpy().astype(np.int16),
  }


if __name__ == '__main__':
  arrays, about = {}, {'source': {m.__name__: m.__version__ for m in (torch, transformers)}}
  with torch.no_grad():
    text(arrays, about)
    greedy(about)
    vision_language(arrays, about, pictures(arrays))
  (HERE / 'qwen2.json').write_text(json.dumps(about, separators=(',', ':')) + '\n')
  np.savez_compressed(HERE / 'qwen2.npz', **arrays)
