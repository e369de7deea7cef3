"""Attention over a list of key and value segments, and its masks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers import masks


def attend(q_BNLH, segments, *, scale, kernel='dense'):
  """One softmax over all segments (k_BKSH, v_BKSH, mask_LS or None), which are never concatenated.
  A mask may also be a row's own, mask_BLS, and 1 where it is the same all along an axis; or
  masks.SegmentMask.

  A prefix shared by many rows stays one copy under vmap; a concatenation would repeat it per row.
  Query heads are grouped over the K heads of the keys. Softmax in float32. Returns o_BNLH.

  kernel: one of KERNELS. 'splash' is for one segment with a mask_LS of numpy or masks.SegmentMask,
  as teacher forcing has. Decoding is dense with either: it has few queries, and the kernel would
  want its segments concatenated."""
  if (
    kernel == 'splash'
    and len(segments) == 1
    and isinstance(segments[0][2], (np.ndarray, masks.SegmentMask))
  ):
    from vargrl.models.layers import splash

    return splash.attend(q_BNLH, *segments[0], scale=scale)
  B, N, L, H = q_BNLH.shape
  K = segments[0][0].shape[1]
  q_BKGLH = q_BNLH.reshape(B, K, N // K, L, H) * scale
  logits = []
  for k_BKSH, _, mask_LS in segments:
    x_BKGLS = jnp.einsum('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, preferred_element_type=jnp.float32)
    if mask_LS is not None:
      if isinstance(mask_LS, masks.SegmentMask):
        mask_LS = mask_LS.mask_BLS
      mask_BLS = mask_LS[None] if mask_LS.ndim == 2 else mask_LS
      x_BKGLS = jnp.where(mask_BLS[:, None, None], x_BKGLS, -2e38)
    logits.append(x_BKGLS)
  top = functools.reduce(
    jnp.maximum, [jax.lax.stop_gradient(x).max(-1, keepdims=True) for x in logits]
  )
  weights = [jnp.exp(x - top) for x in logits]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  # Divided last: L x H numbers instead of L x S, and one array of L x S less is kept for the
  # gradient.
  o_BKGLH = (
    sum(
      jnp.einsum('BKGLS,BKSH->BKGLH', w.astype(v.dtype), v, preferred_element_type=jnp.float32)
      for w, (_, v, _) in zip(weights, segments)
    )
    / total
  )
  return o_BKGLH.astype(q_BNLH.dtype).reshape(B, N, L, H)


LN_100 = math.log(100.0)


KERNELS = ('dense', 'splash')  # what `attend` computes with
