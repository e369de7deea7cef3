"""Numbers that compare two sets of features, or judge one, in numpy.

Frechet distance https://arxiv.org/abs/1706.08500, Inception Score https://arxiv.org/abs/1606.03498,
improved precision and recall https://arxiv.org/abs/1904.06991; as in
https://github.com/openai/guided-diffusion/blob/ main/evaluations/evaluator.py, by which
class-conditional ImageNet models are compared."""

import numpy as np

SPLIT = 5000  # images in a split of the Inception Score: ten of the customary 50,000
NEIGHBOURS = 3  # of an image, which the ball around it holds
BLOCK = 1024  # rows whose distances exist at once


def moments(x_ND):
  """(mean [D], covariance [D, D] over N - 1), float64, in blocks: no second copy of x_ND in
  float64.
  """
  if len(x_ND) < 2:
    raise ValueError(f'features: {len(x_ND)} rows found, at least 2 expected')
  mean_D = x_ND.mean(0, dtype=np.float64)
  total_DD = np.zeros((x_ND.shape[1],) * 2)
  for start in range(0, len(x_ND), BLOCK):
    centred = x_ND[start : start + BLOCK] - mean_D
    total_DD += centred.T @ centred
  return mean_D, total_DD / (len(x_ND) - 1)


def frechet(moments_a, moments_b):
  """|m - n|^2 + tr(A + B - 2 (A B)^1/2) of two Gaussians (mean [D], covariance [D, D]).

  The trace of (A B)^1/2 is taken from the eigenvalues of A^1/2 B A^1/2, which is symmetric: they
  are real, and covariances of too few images, which are singular, need no offset."""
  (m, a), (n, b) = (
    tuple(np.asarray(x, np.float64) for x in pair) for pair in (moments_a, moments_b)
  )
  if m.shape != n.shape:
    raise ValueError(
      f'features: means of {len(m)} and {len(n)} numbers found, equal widths expected'
    )
  values_D, vectors_DD = np.linalg.eigh(a)
  root_DD = (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T
  cross_D = np.linalg.eigvalsh(root_DD @ b @ root_DD)
  value = ((m - n) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.sqrt(cross_D.clip(0)).sum()
  return float(max(value, 0.0))  # equal sets: rounding may leave -1e-6


def inception_score(logits_NV, splits=None):
  """exp of the mean KL(p(v | image) || p(v)), over `splits` parts of equal size, their scores
  averaged.

  splits: None takes parts of about SPLIT images, one if there are fewer. The order of the rows
  counts: parts of a list that is sorted by class know few classes each, so shuffle it."""
  splits = splits or max(1, round(len(logits_NV) / SPLIT))
  if not 0 < splits <= len(logits_NV):
    raise ValueError(
      f'splits: {splits} of {len(logits_NV)} images found, one image in each expected'
    )
  scores = []
  for rows in np.array_split(np.arange(len(logits_NV)), splits):
    logp_NV = logits_NV[rows].astype(np.float64)
    logp_NV -= logp_NV.max(1, keepdims=True)
    logp_NV -= np.log(np.exp(logp_NV).sum(1, keepdims=True))
    p_NV = np.exp(logp_NV)
    mean_1V = p_NV.mean(0, keepdims=True)
    log_mean_1V = np.log(np.maximum(mean_1V, 1e-300))  # p = 0 where the mean is
    scores.append(np.exp((p_NV * (logp_NV - log_mean_1V)).sum(1).mean()))
  return float(np.mean(scores))


def precision_recall(real_ND, fake_MD, neighbours=NEIGHBOURS):
  """(precision: share of fakes within a ball of a real, recall: share of reals within a ball of a
  fake).

  The ball of an image reaches to its `neighbours`-th nearest neighbour in its own set. float32, in
  blocks of BLOCK rows: for 50,000 images 200 MB at once, and about 10^13 multiply-adds at width
  2048."""
  for name, x in (('real', real_ND), ('generated', fake_MD)):
    if len(x) <= neighbours:
      raise ValueError(
        f'precision: {len(x)} {name} images found, more than {neighbours} neighbours expected'
      )
  centre_1D = real_ND.mean(
    0, keepdims=True, dtype=np.float64
  )  # small norms: less is lost in |a|^2 - 2ab + |b|^2
  real, fake = ((x - centre_1D).astype(np.float32) for x in (real_ND, fake_MD))
  real_norm, fake_norm = ((x**2).sum(1) for x in (real, fake))
  radius_N, radius_M = radii(real, real_norm, neighbours), radii(fake, fake_norm, neighbours)
  found_N, found_M = np.zeros(len(real), bool), np.zeros(len(fake), bool)
  for start in range(0, len(fake), BLOCK):
    rows = slice(start, start + BLOCK)
    d_MN = distances(fake[rows], fake_norm[rows], real, real_norm)
    found_M[rows] = (d_MN <= radius_N[None]).any(1)
    found_N |= (d_MN <= radius_M[rows, None]).any(0)
  return float(found_M.mean()), float(found_N.mean())


def radii(x_ND, norm_N, neighbours):
  """Squared distance of each row to its nearest but `neighbours`, itself not counted."""
  out = []
  for start in range(0, len(x_ND), BLOCK):
    rows = slice(start, start + BLOCK)
    d_MN = distances(x_ND[rows], norm_N[rows], x_ND, norm_N)
    out.append(np.partition(d_MN, neighbours, axis=1)[:, neighbours])
  return np.concatenate(out)


def distances(a_ND, a_N, b_MD, b_M):
  """Squared distances [N, M]; a_N, b_M: the squared norms."""
  d_NM = a_ND @ b_MD.T
  d_NM *= -2
  d_NM += a_N[:, None]
  d_NM += b_M[None]
  return d_NM
