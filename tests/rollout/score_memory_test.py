"""The float32 logits of all tokens, of policy and reference, are never held at once."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from vargrl.models import var
from vargrl.models.nets import next_scale
from vargrl.rollout import score
from vargrl.rollout.kinds import scales
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import vq

SCALES, V, P, R = (1, 2, 3, 4, 5, 6, 8), 4099, 2, 3  # no other axis has V entries
MODEL = var.Model(
  var.Config(1, 32, 2, scales=SCALES, vocab=V, channels=4, classes=3, remat='blocks')
)
TOKENIZER = vq.Model(
  vq.Config(vocab=V, channels=4, width=32, mults=(1, 1), blocks=1, scales=SCALES)
)
L = MODEL.c.length


def abstract(module, model):
  return jax.eval_shape(
    lambda key: jax.tree.map(
      jnp.asarray,
      jax.tree.map(
        lambda x: x.value, module.init(model, key), is_leaf=lambda x: hasattr(x, 'value')
      ),
    ),
    jax.random.key(0),
  )


def gradient_of(plan):
  """The compiled gradient of a loss with log-probabilities and the exact KL to a reference."""

  def loss(policy, reference, tokenizer, label_P, t_PRL):
    nets = [next_scale.Net(MODEL, TOKENIZER, p, tokenizer) for p in (policy, reference)]
    scores, _ = score.score(nets, plan, label_P, {'image': {'tokens': t_PRL}})
    return (0.1 * scores.penalty - scores.logp).mean()

  policy, int32 = abstract(var, MODEL), lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  return (
    jax.jit(jax.grad(loss))
    .lower(policy, policy, abstract(vq, TOKENIZER), int32(P), int32(P, R, L))
    .compile()
  )


def largest(program):
  """Entries of the largest array with an axis of logits, the head's weights aside."""
  shapes = [
    [int(n) for n in found.split(',')]
    for found in re.findall(r'f32\[([\d,]+)\]', program.as_text())
  ]
  return max(math.prod(shape) for shape in shapes if V in shape and MODEL.c.width not in shape)


@pytest.mark.parametrize('logp_of, rows', [('cond', P * R), ('guided', 2 * P * R)])
def test_logits_of_a_chunk_are_the_most_that_exist(monkeypatch, logp_of, rows):
  c = scales.Config(2.5, True, 1.0, top_k=0, top_p=0.0, logp_of=logp_of, scales=SCALES)

  def measure(chunk):
    """(entries of the largest array of logits, bytes of all temporaries)."""
    monkeypatch.setattr('vargrl.rollout.vmaps.CHUNK', chunk)
    program = gradient_of((Segment('image', scales, c),))
    return largest(program), program.memory_analysis().temp_size_in_bytes

  both = 2 * rows * L * V * 4  # policy and reference, float32
  entries, temporaries = measure(16)  # 155 tokens in ten chunks
  assert entries == rows * 16 * V
  assert temporaries < both / 2
  entries, temporaries = measure(L)
  assert entries == rows * L * V and temporaries > both  # so would all of them at once look
