"""python make_vargpt.py FOLDER: cuts vargpt.npz and vargpt.json out of a folder of numbers that the
official PyTorch implementation of VARGPT-v1.1 gave at tiny width (VARGPT-family/VARGPT-v1.1 at
8c67c26, float32 on CPU)."""

import json
import pathlib
import sys

import numpy as np

KEPT = {
  'understanding': ('input_ids', 'image_grid_thw', 'position_ids', 'vit_out', 'logits'),
  't2i_train': (
    'input_ids',
    'flip_masks_packed',
    'labels_packed',
    'vae_features',
    'noisy_rows',
    'noisy_inputs',
    'bit_logits',
    'loss_text',
    'loss_bits',
    'memory',
    'text_rows',
    'text_logits',
    'rows_extra',
    'bit_logits_lastdropped',
  ),
  'edit_train': (
    'input_ids',
    'image_grid_thw',
    'flip_masks_packed',
    'labels_packed',
    'bit_logits',
    'loss_text',
    'loss_bits',
    'text_rows',
    'text_logits',
  ),
  'dpo': (
    'input_ids',
    'flip_masks_packed',
    'labels_packed',
    'policy_logps_f64',
    'reference_logps_f64',
    'loss',
    'policy_ce_sum_per_token',
    'reference_ce_sum_per_token',
  ),
  'edit_sample_noise': (
    'input_ids',
    'generated_ids',
    'image_grid_thw',
    'text_logits',
    'call_positions',
    'memory',
    'logits_cond',
    'logits_uncond',
    'logits_guided',
    'bits_packed',
    'latent',
  ),
  't2i_sample_greedy': ('input_ids', 'generated_ids', 'bits_packed', 'image_u8_bgr'),
}
EIGHTH = (
  'bit_logits',
  'logits_cond',
  'logits_uncond',
  'logits_guided',
)  # of whose tokens every eighth is kept


def main(folder):
  folder, here = pathlib.Path(folder), pathlib.Path(__file__).parent
  arrays, described = {}, {}
  for name, keys in KEPT.items():
    about, found = (
      json.loads((folder / f'{name}.json').read_text()),
      np.load(folder / f'{name}.npz'),
    )
    for key in keys:
      x = found[key]
      if key in EIGHTH:
        x = x[..., ::8, :]
      if key == 'image_u8_bgr':
        x = x[::4, ::4]
      arrays[f'{name}/{key}'] = x
    described[name] = {key: about[key] for key in ('what', 'inputs', 'tolerance')}
    described |= {key: about[key] for key in ('provenance', 'config', 'keys', 'buffers_not_filled')}
  np.savez_compressed(here / 'vargpt.npz', **arrays)
  lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(x)}' for key, x in described.items())
  (here / 'vargpt.json').write_text('{\n' + lines + '\n}\n')


if __name__ == '__main__':
  main(sys.argv[1])
