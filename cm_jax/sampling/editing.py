"""Zero-shot editing with a consistency model (CM Alg. 4, appendix D): no training, no gradient, few steps.

`edit` takes a Model and uint8 images. The functions below it take a Denoiser f (x, sigma) -> image and
`noise(k, shape)`, the k-th standard normal draw; noise levels are physical and descending; the caller jits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import karras_levels
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.pixels import normalize, quantize
from cm_jax.errors import UserError, one_of
from cm_jax.models import Model
from cm_jax.notices import progress_bar
from cm_jax.sampling.generate import generate, local_mesh
from cm_jax.sampling.interpolation import interpolate
from cm_jax.sampling.labels import class_number
from cm_jax.sampling.multistep import check_sigmas
from cm_jax.types import Array, Condition, Denoiser, Noise, NoiseRange, Operator

STROKE_SIGMAS = (5.38, 2.24)  # CM appendix D
VARIATION_SIGMAS = (2.24,)
TASKS = ("stroke", "variation", "denoise", "interpolate")  # that measure nothing; the others are operators


class Edited(NamedTuple):
  """What `edit` makes, uint8 [N,H,W,C] each.

  Attributes:
    results: The edited images.
    inputs: The image that each was made from; None where there is none.
    known: What the task measured of it, as people read it; None likewise.
  """

  results: np.ndarray
  inputs: np.ndarray | None = None
  known: np.ndarray | None = None


def edit(
  model: Model,
  task: Operator | str,
  images: np.ndarray | None = None,
  sigmas: Sequence[float] | None = None,
  sigma: float | None = None,
  num: int = 1,
  label: str | int = -1,
  seed: int = 0,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  num_scales: int = 18,
  progress: bool = True,
  between: tuple[int, int] = (0, 1),
) -> Edited:
  """Edit images with a consistency model (CM Alg. 4).

  Args:
    model: The consistency model.
    task: What is measured of the images, the rest being filled in (`operators`); or "stroke", "variation",
      "denoise"; or "interpolate", which takes no images.
    images: uint8 [N,H,W,C] of the model's shape.
    sigmas: Descending noise levels; by default CM's for the task.
    sigma: Of "denoise": the level of the images' noise, in [-1, 1] units.
    num: Results of each image; of "interpolate", the images on the way from one sample to another.
    label: Class of the images, its number or its name; -1 for none.
    seed: Result i depends on (seed, i) only.
    batch_size: Images at a time.
    mesh: Devices of this host to spread them over; by default all.
    num_scales: Where `sigmas` are those of an operator by default: points of the Karras grid; CM has 18 for
      CIFAR-10, 40 for LSUN.
    progress: Show a bar.
    between: Of "interpolate": the numbers of the two samples of the seed, as they are drawn in one step.

  Raises:
    UserError: Names the argument: an unknown task, a label the model has not, levels out of range or not
      descending, an operator that does not fit the images, images of another shape.
  """
  if isinstance(task, str) and task not in TASKS:
    raise UserError("task", task, one_of(TASKS, task))
  number = -1 if str(label) == "-1" else class_number(model, label, none="-1")
  inputs: np.ndarray | None = None
  levels: tuple[float, ...] = ()
  if task != "interpolate":
    levels = task_sigmas(task, model.noise, sigmas, sigma, num_scales)
    if images is None or images.shape[1:] != model.image_shape:
      given = None if images is None else images.shape[1:]
      raise UserError("images", given, f"images of shape {model.image_shape}")
    if not isinstance(task, str):  # tells what does not fit before any work
      jax.eval_shape(task.forward, jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32))
    inputs = images.repeat(num, axis=0)
  if min(between) < 0 or len(between) != 2:
    raise UserError("between", str(between), "the numbers of two samples, 0 or more")
  program = _editor(model, task, levels, num, between)

  def generator(params: Any, seed: Any, indices: Array, label: Array | None) -> Array:
    rows = None if inputs is None else jax.device_put(inputs[np.asarray(indices)], indices.sharding)
    return program(params, seed, indices, label, rows)

  count = num if inputs is None else len(inputs)
  classes = number if model.num_classes else None
  batches = generate(
    generator,
    model.params,
    range(count),
    model.num_classes,
    min(batch_size, count),
    mesh or local_mesh(),
    classes,
    seed,
  )
  done, hidden = [], not (progress and jax.process_index() == 0)
  title = task if isinstance(task, str) else type(task).__name__.lower()
  with progress_bar(total=count, unit="img", desc=title, disable=hidden) as bar:
    for batch in batches:
      done.append(batch)
      bar.update(len(batch))
  results = np.concatenate(done)
  if inputs is None:
    return Edited(results)
  if isinstance(task, str):
    return Edited(results, inputs, inputs)
  show = jax.jit(lambda image: quantize(task.shown(normalize(image))))
  parts = [np.asarray(show(inputs[i : i + batch_size])) for i in range(0, len(inputs), batch_size)]
  return Edited(results, inputs, np.concatenate(parts))


def _editor(
  model: Model, task: Operator | str, sigmas: tuple[float, ...], num: int, between: tuple[int, int]
) -> Callable[..., Array]:
  """Return the jitted (params, seed, indices, label, images) -> uint8 results."""
  low, high = model.noise.sigma_min, model.noise.sigma_max

  @jax.jit
  def program(params: Any, seed: Array, indices: Array, label: Array | None, images: Array | None) -> Array:
    f, key = model.preconditioned(params, Condition(label)), jax.random.key(seed)
    if images is None:
      a, b = per_sample_noise(key, jnp.array(between))(0, (2, *model.image_shape))
      return quantize(interpolate(f, a, b, jnp.linspace(0, 1, num)[indices], high))
    noise, x = per_sample_noise(key, indices), normalize(images)
    if not isinstance(task, str):
      return quantize(fill_in(f, noise, x, task, sigmas, low))
    if task == "denoise":
      return quantize(denoise(f, x, jnp.full(len(x), sigmas[0])))
    return quantize(resample(f, noise, x, sigmas, low))

  return program


def task_sigmas(
  task: Operator | str,
  noise: NoiseRange,
  sigmas: Sequence[float] | None = None,
  sigma: float | None = None,
  num_scales: int = 18,
) -> tuple[float, ...]:
  """Return the noise levels of a task: those given, or CM's.

  Raises:
    UserError: Out of range, or not descending; "denoise" without the level of the noise.

  >>> task_sigmas("stroke", NoiseRange())
  (5.38, 2.24)
  """
  if task == "denoise":
    low, high = noise.sigma_min, noise.sigma_max
    if sigma is None or not low <= sigma <= high:
      given = "" if sigma is None else sigma
      raise UserError("sigma", given, f"the noise level of the input, {low:g} to {high:g}")
    return (sigma,)
  if sigmas is not None:
    return check_sigmas(sigmas, noise)
  fixed = (
    {"stroke": STROKE_SIGMAS, "variation": VARIATION_SIGMAS}.get(task) if isinstance(task, str) else None
  )
  return check_sigmas(fixed, noise) if fixed else default_sigmas(noise, num_scales)


def default_sigmas(noise: NoiseRange, num_scales: int) -> tuple[float, ...]:
  """Return the Karras grid without its last level, which adds no noise (CM appendix D: 18 points, LSUN 40).

  >>> len(default_sigmas(NoiseRange(), 18)), default_sigmas(NoiseRange(), 18)[0]
  (17, 80.0)
  """
  return karras_levels(num_scales, noise)[:-1]


def fill_in(
  f: Denoiser,
  noise: Noise,
  reference: Array,
  operator: Operator,
  sigmas: Sequence[float],
  sigma_min: float,
  start: Array | None = None,
) -> Array:
  """Fill in what is not measured of images (CM Alg. 4).

  y = A^-1[(A reference)(1 - Omega)]; x ~ N(y, sigma_1^2 I); then for every level:
  x = merge(clip f(x, sigma), y), and noise of sqrt(sigma^2 - sigma_min^2) for the next.

  Args:
    f: The consistency model.
    noise: Draw 0 makes the first x, draw i that of the i-th further level.
    reference: Images [B,H,W,C] in [-1, 1]; what they hold beyond the measurement is not used.
    operator: The task.
    sigmas: Descending, in (sigma_min, sigma_max].
    sigma_min: Of the model.
    start: The first x, instead of y + sigma_1 z.

  Returns:
    [B,H,W,C]; what was measured of `reference` is kept, up to rounding (`merge` after quantising for
    bit-exactness).

  >>> from cm_jax.sampling.operators import Mask
  >>> known, noise = Mask(np.array([[1.0, 0.0]])), lambda k, shape: jnp.ones(shape)
  >>> image = jnp.array([0.25, 0.75]).reshape(1, 1, 2, 1)
  >>> fill_in(lambda x, sigma: 0 * x - 0.5, noise, image, known, (80.0, 1.0), 0.002).ravel().tolist()
  [0.25, -0.5]
  """
  known = operator.forward(reference)
  x = known + sigmas[0] * noise(0, reference.shape) if start is None else start
  merge = lambda image: operator.merge(image, known)
  return _along(f, noise, x, sigmas, [0.0, *_added(sigmas[1:], sigma_min)], merge)


def resample(f: Denoiser, noise: Noise, reference: Array, sigmas: Sequence[float], sigma_min: float) -> Array:
  """Noise images to sigma_1 and denoise them in a few steps: stroke-guided generation (SDEdit), variations.

  x ~ N(reference, sigma_1^2 I); x = f(x, sigma_1); for each further level
  x = f(x + sqrt(sigma^2 - sigma_min^2) z, sigma).

  Args:
    f: The consistency model.
    noise: Draw 0 makes the first x, draw i that of the i-th further level.
    reference: Images [B,H,W,C] in [-1, 1].
    sigmas: Descending, in (sigma_min, sigma_max].
    sigma_min: Of the model.

  Note:
    CM Alg. 4 with everything to fill in would erase the strokes; this is its text's reading.

  >>> image, noise = jnp.full((1, 1, 1, 1), 0.5), lambda k, shape: jnp.ones(shape)
  >>> resample(lambda x, sigma: x - sigma[0], noise, image, (2.0,), 0.002).item()
  0.5
  """
  return _along(f, noise, reference, sigmas, [sigmas[0], *_added(sigmas[1:], sigma_min)], lambda image: image)


def _added(sigmas: Sequence[float], sigma_min: float) -> list[float]:
  return [math.sqrt(sigma**2 - sigma_min**2) for sigma in sigmas]


def _along(
  f: Denoiser,
  noise: Noise,
  x: Array,
  sigmas: Sequence[float],
  added: Sequence[float],
  use: Callable[[Array], Array],
) -> Array:
  """Return the end of x -> use(clip f(x + added_k z_k, sigma_k)), one `lax.scan`: f is compiled once."""

  def step(x: Array, level: tuple[Array, Array, Array]) -> tuple[Array, None]:
    k, sigma, scale = level
    noisy = x + scale * noise(k, x.shape)
    return use(jnp.clip(f(noisy, jnp.full(x.shape[:1], sigma)), -1, 1)).astype(x.dtype), None

  levels = (jnp.arange(len(sigmas)), jnp.asarray(sigmas, x.dtype), jnp.asarray(added, x.dtype))
  return jax.lax.scan(step, x, levels)[0]


def denoise(f: Denoiser, noisy: Array, sigma: Array) -> Array:
  """Return f(x, sigma) of images with noise of a known level [B] (CM section 6).

  >>> denoise(lambda x, sigma: x - sigma[0], jnp.full((1, 1, 1, 1), 2.5), jnp.full(1, 2.0)).item()
  0.5
  """
  return jnp.clip(f(noisy, sigma), -1, 1)
