"""Writes tests/golden/blip.npz with transformers' BLIP, whose arithmetic is that of ImageReward's
own copy:

python tests/golden/make_blip.py     # needs torch, transformers 5, numpy
"""

import pathlib

import blip_rule as rule
import numpy as np
import torch
from transformers.models.blip import configuration_blip as configs
from transformers.models.blip import modeling_blip, modeling_blip_text

# their key of transformers -> ImageReward's
IMAGE = (
  ('encoder.layers.', 'blocks.'),
  ('self_attn.projection', 'attn.proj'),
  ('self_attn.', 'attn.'),
  ('layer_norm', 'norm'),
  ('post_layernorm', 'norm'),
  ('embeddings.class_embedding', 'cls_token'),
  ('embeddings.position_embedding', 'pos_embed'),
  ('embeddings.patch_embedding', 'patch_embed.proj'),
)
MEAN, STD = 0.16717362830052426, 1.0333394966054072


def filled(model, prefix, renames=()):
  state, keys = {}, []
  for key, value in model.state_dict().items():
    name = key
    for old, new in renames:
      name = name.replace(old, new)
    keys.append(prefix + name)
    state[key] = torch.from_numpy(rule.weights(prefix + name, tuple(value.shape)))
  model.load_state_dict(state)
  return keys


def image_tower(s):
  return modeling_blip.BlipVisionModel(
    configs.BlipVisionConfig(
      hidden_size=s['image_width'],
      intermediate_size=4 * s['image_width'],
      num_hidden_layers=s['image_layers'],
      num_attention_heads=s['image_heads'],
      image_size=s['image_size'],
      patch_size=s['patch'],
      hidden_act='gelu',
      layer_norm_eps=1e-6,
    )
  ).eval()


def text_model(s):
  return modeling_blip_text.BlipTextModel(
    configs.BlipTextConfig(
      vocab_size=s['vocab'],
      hidden_size=s['text_width'],
      encoder_hidden_size=s['image_width'],
      intermediate_size=4 * s['text_width'],
      num_hidden_layers=s['text_layers'],
      num_attention_heads=s['text_heads'],
      max_position_embeddings=s['positions'],
      hidden_act='gelu',
      layer_norm_eps=1e-12,
      is_decoder=True,
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
    ),
    add_pooling_layer=False,
  ).eval()


def reward_head(s):
  return torch.nn.ModuleDict(
    {
      'layers': torch.nn.Sequential(
        torch.nn.Linear(s['text_width'], 1024),
        torch.nn.Dropout(),
        torch.nn.Linear(1024, 128),
        torch.nn.Dropout(),
        torch.nn.Linear(128, 64),
        torch.nn.Dropout(),
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 1),
      )
    }
  ).eval()


def main():
  s = rule.SIZES
  image, text, head = image_tower(s), text_model(s), reward_head(s)
  keys = (
    filled(image, 'blip.visual_encoder.', IMAGE)
    + filled(text, 'blip.text_encoder.')
    + filled(head, 'mlp.')
  )
  x_Byxc, t_BL, mask_BL = (torch.from_numpy(x) for x in rule.inputs())
  seen = image(pixel_values=x_Byxc.permute(0, 3, 1, 2)).last_hidden_state
  state = text(
    input_ids=t_BL.long(),
    attention_mask=mask_BL.long(),
    encoder_hidden_states=seen,
    encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
    is_decoder=False,
  ).last_hidden_state[:, 0]
  reward = (head['layers'](state)[:, 0] - MEAN) / STD
  print('image', seen.std(), 'text', state.std(), 'reward', reward)
  np.savez_compressed(
    pathlib.Path(__file__).with_name('blip.npz'),
    keys=np.array(sorted(keys)),
    image=seen[:, ::3].numpy(),
    state=state.numpy(),
    reward=reward.numpy(),
  )


if __name__ == '__main__':
  with torch.no_grad():
    main()
