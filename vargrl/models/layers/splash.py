"""Attention in blocks, for long sequences on a TPU: the splash kernel that comes with JAX.

It holds logits of one block of queries and keys at a time, in float32, and skips blocks that the
mask leaves empty; L x S numbers never exist, neither forward nor backward. It is for updates and
log-probabilities; sampling is dense. Compiled for v5p, the attention of one layer of VAR-d36-512,
forward and backward for 4 rows, holds 0.7 GiB of temporaries, dense 4.2; at 256 pixels no block is
empty, and a layer of d16 gains 0.1 GiB.
https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers import masks
from vargrl.parallel import rules

LANES = 128  # of a TPU's vector registers: sequences are cut in multiples of it


def attend(q_BNLH, k_BKSH, v_BKSH, mask, *, scale):
  """softmax(scale q k) v under a mask_LS, numpy bool, known while compiling, or masks.SegmentMask.
  Returns o_BNLH.

  On a CPU the kernel is interpreted: slow, and right. ValueError on any other platform, and for
  bfloat16 at a matmul precision that the kernel's compiler lacks. Heads are spread over the mesh; B
  is not, as the mesh axes of rows belong to the vmaps around."""
  interpret, precision = interpreted(rules.platform()), jax.config.jax_default_matmul_precision
  if (
    not interpret
    and q_BNLH.dtype == jnp.bfloat16
    and precision not in (None, 'default', 'bfloat16', 'fastest')
  ):
    raise ValueError(
      f"policy.attention: 'splash' in bfloat16 at jax_default_matmul_precision {precision!r} "
      'found, '
      "'default' expected"
    )
  mask_LS, packed = (
    (mask.mask_LS, [mask.segment_BL]) if isinstance(mask, masks.SegmentMask) else (mask, [])
  )
  block = block_size(max(mask_LS.shape))
  L, S = mask_LS.shape
  # Padded keys are seen by none. Padded queries see what the last one sees, so that no softmax is
  # empty.
  mask = np.pad(mask_LS, ((0, -L % block), (0, 0)), mode='edge')
  mask = np.pad(mask, ((0, 0), (0, -S % block)))
  sizes = kernels.BlockSizes(
    **dict.fromkeys(
      (
        'block_q',
        'block_kv',
        'block_kv_compute',
        'block_q_dkv',
        'block_kv_dkv',
        'block_kv_dkv_compute',
        'block_q_dq',
        'block_kv_dq',
      ),
      block,
    )
  )

  def local(q, k, v, *segments):
    heads = splash_masks.MultiHeadMask([splash_masks.NumpyMask(mask)] * q.shape[1])
    kernel = kernels.make_splash_mha(
      heads, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    return jax.vmap(kernel)(q, k, v, *(kernels.SegmentIds(a, a) for a in segments))

  pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))
  arguments = [pad(x) for x in (q_BNLH * scale, k_BKSH, v_BKSH)]
  # Padded queries are of the last one's sequence.
  whole = [jnp.pad(a, ((0, 0), (0, -L % block)), mode='edge') for a in packed]
  return rules.shard_map(local, *arguments, axes='BKSH', replicated=whole)[:, :, :L]


def block_size(length):
  """Of 512, 384, 256 and 128 that which pads a sequence least, the larger of two: a small block
  skips more, but has less to do than it takes to begin it (reckoned, not timed).

  680 tokens (256 pixels) are 2 x 2 blocks of 384, none empty; their gain is in memory. Of 2240 (512
  pixels), 28 of 6 x 6 are computed: 82 % of L x L, where the mask has 65 %, and blocks of 128 (222
  of 18 x 18) 73 %."""
  return min((512, 384, 256, LANES), key=lambda size: (-length % size, -size))


def interpreted(platform):
  """False on a TPU, True on a CPU; refuses others."""
  if platform not in ('tpu', 'cpu'):
    raise ValueError(
      f"policy.attention: 'splash' on {platform} found, 'dense' expected: the kernel is a TPU's, "
      'and is '
      'interpreted on a CPU'
    )
  return platform == 'cpu'
