"""Images of given classes under fixed keys: the same noise at every step, so that grids compare."""
import jax
import jax.numpy as jnp
import numpy as np

from vargrl import pictures


def make(models, *, classes, each, seed):
  """A grid with one row per class 0 .. classes - 1 and `each` images in it."""
  draw = sampler(models)

  def evaluate(params, frozen):
    image_Byxc, label_B = draw(params, frozen, classes=classes, each=each, seed=seed)
    yield 'grid', pictures.grid(image_Byxc, columns=each, cell=48)
  return evaluate


def sampler(models):
  """draw(params, frozen, *, classes, each, seed, rows) -> (uint8 image_Byxc, label_B), by class.

  rows: images per class and call, so that any number fits in memory.
  """
  @jax.jit
  def some(policy, frozen, label_P, keys_PR):
    out = models.generate(policy, frozen, label_P, keys_PR)
    image_Byxc = models.decode(frozen, out.tokens.reshape(-1, out.tokens.shape[-1]))
    return jnp.rint((image_Byxc + 1) * 127.5).astype(jnp.uint8)

  def draw(params, frozen, *, classes, each, seed, rows=50):
    label_P = np.arange(classes) if np.isscalar(classes) else np.asarray(classes)
    P, rng, images = len(label_P), jax.random.key(seed), []
    ways = parallel_ways()
    rows = -(-min(rows, each) // ways) * ways  # every device has rows, whatever the number of classes
    for i in range(-(-each // rows)):  # the last call may draw more than is kept: one shape, one compile
      out = some(params['policy'], frozen, jnp.asarray(label_P, jnp.int32),
                 models.keys(rng, P, rows, i * rows))
      images.append(np.asarray(out).reshape(P, rows, *out.shape[1:]))
    image = np.concatenate(images, 1)[:, :each]
    return image.reshape(-1, *image.shape[2:]), np.repeat(label_P, each)
  return draw


def parallel_ways():
  """How many devices the rows of a batch are spread over."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape['data'] * mesh.shape['fsdp']
