"""Images of a model in one call."""

from collections.abc import Sequence

import numpy as np

from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.sampling.choose import choose_samplers
from cm_jax.sampling.generate import generate, local_mesh, make_generator
from cm_jax.sampling.labels import class_number
from cm_jax.types import Sampler


def sample(
  model: Model,
  num: int = 16,
  sigmas: Sequence[float] | float | None = None,
  num_steps: int | None = None,
  nfe: int | None = None,
  sampler: Sampler | str = "heun",
  label: str | int | None = None,
  guidance: float | None = None,
  seed: int = 0,
  batch_size: int = 64,
  clip: bool | None = None,
  renoise: str | None = None,
) -> np.ndarray:
  """Return samples 0 to num - 1 of a model: uint8 [num,H,W,C], of a model of latents float32.

  Args:
    model: Whose weights are sampled: `load_model(path)`.
    num: How many.
    sigmas: Noise levels of multistep sampling, descending: 80.0 or (80.0, 0.8).
    num_steps: Steps of the ODE sampler `sampler`.
    nfe: Multistep sampling with the tuned levels of so many network evaluations.
    sampler: What `num_steps` are steps of; or a Sampler, which needs nothing beside it. Without any of these
      the model is sampled as its run says, else as is usual for its kind.
    label: Class of all of them, its number or its name; by default every class equally often.
    guidance: Scale, for a conditional model; None for none.
    seed: Sample i depends on (seed, i) only.
    batch_size: Images at a time.
    clip, renoise: Instead of the model's own; see `choose_samplers`. Not beside a Sampler, which says them.

  Raises:
    UserError: Names the argument that would not do.
  """
  ways = {"sigmas": sigmas, "num_steps": num_steps, "nfe": nfe}
  given = {name: value for name, value in ways.items() if value is not None}
  allowed = 1 if isinstance(sampler, str) else 0
  if len(given) > allowed:
    name, value = list(given.items())[allowed]
    raise UserError(name, str(value), "one way to sample: sigmas, num_steps, nfe or a sampler")
  said = {name: value for name, value in (("clip", clip), ("renoise", renoise)) if value is not None}
  if said and not isinstance(sampler, str):
    key = next(iter(said))
    raise UserError(key, said[key], "none: the sampler says it")
  if num < 1:
    raise UserError("num", num, "at least 1")
  number = None if label is None else class_number(model, label)
  chosen = sampler
  if isinstance(chosen, str):
    levels = [] if sigmas is None else [np.ravel(sigmas).tolist()]
    steps = [] if num_steps is None else [num_steps]
    chosen = choose_samplers(model, levels, steps, chosen, nfe, clip, renoise)[0]
  generator = make_generator(model, chosen, guidance)
  batches = generate(
    generator, model.params, range(num), model.num_classes, min(batch_size, num), local_mesh(), number, seed
  )
  return np.concatenate(list(batches))
