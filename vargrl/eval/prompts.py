"""Images of the first prompts of a file of text features under fixed keys: grids that compare, as
eval/samples.py's.
"""

import numpy as np

from vargrl.data import features
from vargrl.eval import samples
from vargrl.parallel import multihost, rows
from vargrl.reporting import images as pictures


def make(built, *, path, prompts, per_prompt, seed, preset):
  """The evaluator of a grid with one row for each of the first `prompts` prompts, of `per_prompt`
  images each.

  path: an .npz of text features, see data/features.py. preset: '' samples as the run's own rollouts
  do; a name, such as 'infinity', with published settings. Raises ValueError where the policy does
  not read text features, or where these do not fit."""
  features_known = built.policy.features
  if not {'text', 'length'} <= set(features_known):
    raise ValueError(
      f'prompts: a policy of {sorted(features_known) or "labels"} found, one that reads text '
      'expected'
    )
  if min(per_prompt, prompts) < 1:
    raise ValueError(f'prompts, per_prompt: {prompts}, {per_prompt} found, at least 1 expected')
  some, (tokens, width) = samples.batch_sampler(built, preset), features_known['text'][0]
  table = features.load_first(path, tokens=tokens, width=width, first=prompts)

  def evaluate(params, frozen, poll=None):
    keys_B = samples.row_keys(built.policy, seed, prompts, per_prompt)
    label_B, images = np.repeat(np.arange(prompts), per_prompt), []
    for row_B, counts_B in rows.batches(len(label_B), BATCH, poll):
      prompt_B = {k: x[label_B[row_B]] for k, x in table.items()}
      images.append(multihost.to_numpy(some(params, frozen, prompt_B, keys_B[row_B]))[counts_B])
    yield 'grid', pictures.grid(np.concatenate(images), columns=per_prompt, cell=48)

  return evaluate


BATCH = 16  # images on a device at once
