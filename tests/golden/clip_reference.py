"""Makes clip.json and clip.npz: what transformers, open_clip and torch say of small CLIPs, texts
and a real head.

  python tests/golden/clip_reference.py      needs torch, transformers and open_clip_torch; nothing
  is downloaded

Weights follow from their keys (clip_golden.py), so that only results are stored.
"""

import importlib.util
import json
import pathlib
import sys
import tempfile
import types

import numpy as np
import torch
import transformers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer  # now: it looks for torchvision too


def stand_in(name):
  """open_clip imports torchvision for picture transforms, which are not used here."""
  module = sys.modules[name] = types.ModuleType(name)
  module.__getattr__ = lambda attribute: type(attribute, (), {'BICUBIC': 0, 'BILINEAR': 0})
  parent, _, child = name.rpartition('.')
  if parent:
    setattr(sys.modules[parent], child, module)


if importlib.util.find_spec('torchvision') is None:
  sys.modules['timm'] = None
  for end in ('', '.ops', '.ops.misc', '.transforms', '.transforms.functional'):
    stand_in(f'torchvision{end}')
import open_clip  # noqa: E402

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
import clip_golden  # noqa: E402
import small_bpe  # noqa: E402


def hugging_face(c):
  tower = lambda name: dict(
    hidden_size=c[f'{name}_width'],
    num_hidden_layers=c[f'{name}_layers'],
    num_attention_heads=c[f'{name}_heads'],
    intermediate_size=4 * c[f'{name}_width'],
    hidden_act=c['act'],
  )
  config = CLIPConfig(
    projection_dim=c['embed'],
    vision_config=tower('image') | dict(patch_size=c['patch'], image_size=c['image_size']),
    text_config=tower('text')
    | dict(
      vocab_size=c['vocab'],
      max_position_embeddings=77,
      bos_token_id=c['vocab'] - 2,
      eos_token_id=c['vocab'] - 1,
    ),
  )
  model = CLIPModel(config).eval()

  def run(images, ids):
    image, text = model.vision_model(pixel_values=images), model.text_model(input_ids=ids)
    return model.visual_projection(image.pooler_output), model.text_projection(text.pooler_output)

  return model, run


def openclip(c):
  model = open_clip.model.CLIP(
    c['embed'],
    quick_gelu=c['act'] == 'quick_gelu',
    vision_cfg=dict(
      layers=c['image_layers'],
      width=c['image_width'],
      patch_size=c['patch'],
      head_width=c['image_width'] // c['image_heads'],
      image_size=c['image_size'],
    ),
    text_cfg=dict(
      context_length=77,
      vocab_size=c['vocab'],
      width=c['text_width'],
      heads=c['text_heads'],
      layers=c['text_layers'],
    ),
  ).eval()
  return model, lambda images, ids: (model.encode_image(images), model.encode_text(ids))


def towers(described, arrays):
  for arch, c in clip_golden.CONFIGS.items():
    images, ids = clip_golden.inputs(c)
    for layout, build in (('hf', hugging_face), ('open_clip', openclip)):
      model, run = build(c)
      state = {
        k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith('position_ids')
      }
      weights = {k: torch.from_numpy(clip_golden.weight(k, shape)) for k, shape in state.items()}
      missing, unexpected = model.load_state_dict(weights, strict=False)
      assert not unexpected and all(k.endswith('position_ids') for k in missing), (
        missing,
        unexpected,
      )
      with torch.no_grad():
        image, text = run(
          torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long()
        )
      described[f'{arch}_{layout}'] = state
      arrays |= {
        f'{arch}_{layout}_image': image.numpy(),
        f'{arch}_{layout}_text': text.numpy(),
        f'{arch}_{layout}_logit_scale': model.logit_scale.detach().numpy(),
      }
      print(
        arch,
        layout,
        len(state),
        'tensors, image std',
        float(image.std()),
        'text std',
        float(text.std()),
      )


def tokenizers(arrays):
  texts = [*small_bpe.TEXTS, *small_bpe.ODD]
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    small_bpe.write(folder)
    ours = open_clip.tokenizer.SimpleTokenizer(
      bpe_path=str(folder / 'bpe_simple_vocab_16e6.txt.gz')
    )
    arrays['ids_open_clip'] = ours(texts).numpy().astype(np.int16)
    hf = CLIPTokenizer.from_pretrained(folder / 'hf')
    out = hf(texts, padding='max_length', max_length=77, truncation=True)['input_ids']
    arrays['ids_hf'] = np.array(out, np.int16)


def aesthetic(arrays):
  state = torch.load(HERE / clip_golden.HEAD, weights_only=True, map_location='cpu')
  sizes = (768, 1024, 128, 64, 16, 1)
  linear = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
  drop = torch.nn.Dropout
  model = torch.nn.Sequential(
    linear[0], drop(0.2), linear[1], drop(0.2), linear[2], drop(0.1), *linear[3:]
  ).eval()
  model.load_state_dict({k.removeprefix('layers.'): v for k, v in state.items()})
  with torch.no_grad():
    arrays['aesthetic'] = model(torch.from_numpy(clip_golden.embeddings()))[:, 0].numpy()
  print('aesthetic', arrays['aesthetic'])


if __name__ == '__main__':
  described, arrays = {}, {}
  towers(described, arrays)
  tokenizers(arrays)
  aesthetic(arrays)
  versions = {m.__name__: m.__version__ for m in (torch, transformers, open_clip)}
  (HERE / 'clip.json').write_text(
    json.dumps({'source': versions, 'keys': described}, separators=(',', ':')) + '\n'
  )
  np.savez_compressed(HERE / 'clip.npz', **arrays)
