"""Writes tests/golden/inception.npz with torch_fidelity (https://github.com/toshas/torch-fidelity,
0.4.0):

python tests/golden/make_inception.py     # needs torch, torch_fidelity, numpy
"""

import importlib.util
import pathlib
import sys
import tempfile
import types
from unittest import mock

import inception_rule as rule
import numpy as np
import torch


def package(name):
  """The package without its __init__, which imports torchvision; nothing here needs that."""
  folders = importlib.util.find_spec(name).submodule_search_locations
  sys.modules[name] = types.ModuleType(name)
  sys.modules[name].__path__ = list(folders)


def network():
  from torch_fidelity import feature_extractor_inceptionv3 as file

  theirs = file.FeatureExtractorInceptionV3.__dict__['__init__']
  shapes, load = {}, torch.nn.Module.load_state_dict

  def filled(self, state):
    shapes.update({k: tuple(v.shape) for k, v in self.state_dict().items()})
    state = {
      k: torch.from_numpy(rule.weights(k, s)) for k, s in shapes.items() if 'num_batches' not in k
    }
    state |= {k: torch.tensor(0) for k in shapes if 'num_batches' in k}
    return load(self, state)

  file.FeatureExtractorInceptionV3.load_state_dict = filled
  model = file.FeatureExtractorInceptionV3.__new__(file.FeatureExtractorInceptionV3)
  with tempfile.NamedTemporaryFile() as empty:
    torch.save({}, empty.name)
    theirs(
      model,
      'inception',
      ['2048', 'logits_unbiased', 'logits'],
      feature_extractor_weights_path=empty.name,
    )
  return model, file, shapes


def main():
  package('torch_fidelity')
  for name in ('torchvision', 'torch_fidelity.utils'):
    sys.modules[name] = mock.MagicMock()
  model, file, shapes = network()
  x = torch.from_numpy(rule.pictures().transpose(0, 3, 1, 2).copy())
  resized = file.interpolate_bilinear_2d_like_tensorflow1x(
    x.float(), size=(299, 299), align_corners=False
  )
  pool, unbiased, logits = model(x)
  print(
    'pool',
    pool.mean(),
    pool.std(),
    pool.max(),
    'logits',
    logits.std(),
    'zeros',
    (pool == 0).float().mean(),
  )
  print('between pictures', (pool[0] - pool[1]).std())
  from torch_fidelity import metric_fid, metric_isc, metric_prc

  a, b = (
    torch.from_numpy(rule.features(1, 300, 16, 0)),
    torch.from_numpy(rule.features(2, 200, 16, 0.3)),
  )
  fid = metric_fid.fid_statistics_to_metric(
    *(metric_fid.fid_features_to_statistics(f.double()) for f in (a, b)), False
  )['frechet_inception_distance']
  isc = metric_isc.isc_features_to_metric(a, splits=10, shuffle=False)['inception_score_mean']
  precision, recall = metric_prc.calculate_precision_recall_full(a, b, neighborhood=3)
  print(fid, isc, precision, recall)
  np.savez_compressed(
    pathlib.Path(__file__).with_name('inception.npz'),
    keys=np.array(sorted(shapes)),
    resized=resized[:, :, ::23, ::23].numpy().transpose(0, 2, 3, 1),
    pool=pool.numpy(),
    logits=logits.numpy(),
    unbiased=unbiased[:, ::16].numpy(),
    fid=fid,
    inception_score=isc,
    precision=precision,
    recall=recall,
  )


if __name__ == '__main__':
  with torch.no_grad():
    main()
