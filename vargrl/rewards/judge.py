"""A reward on the device that has weights, and the networks that several of them share."""

from collections.abc import Callable
import dataclasses


@dataclasses.dataclass(frozen=True)
class Tower:
  """A frozen network that looks at pictures for one or several judges.

  load: mesh -> its weights, read from their file. apply: (weights, image_Byxc float32 in [-1, 1])
  -> features, any pytree whose leaves lead with B. shapes: mesh -> the weights as
  jax.ShapeDtypeStruct, without reading any file."""

  load: Callable
  apply: Callable
  shapes: Callable


@dataclasses.dataclass(frozen=True)
class Judge:
  """A reward on the device that has weights: what the function `judge` of a module returns.

  towers: {key: Tower}; towers of equal keys are loaded once and run once a batch, however many
  judges look through them. load: mesh -> the judge's own weights. score: (own weights, {key:
  features}, types.Samples) -> r_B, NaN for no verdict. shapes: mesh -> its own weights as
  jax.ShapeDtypeStruct, without reading any file."""

  towers: dict
  load: Callable
  score: Callable
  shapes: Callable
