"""Turn numbered samples into images, in batches of one shape: sample i depends on (seed, i) only."""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from cm_jax.diffusion.noise import check_seed, per_sample_noise
from cm_jax.diffusion.pixels import QUANTISERS, is_latent
from cm_jax.errors import UserError, one_of
from cm_jax.models import Model
from cm_jax.networks import kernels
from cm_jax.sampling.guidance import check_guidance, guided
from cm_jax.types import Array, Condition, Denoiser, Params, Sampler

# (params, seed uint32 scalar, indices int32 [B], label int32 [B] or None) -> images [B,H,W,C]
Generator = Callable[[Params, Array | np.uint32, Array, Array | None], Array]
STATES = ("float32", "float64")
POSITIONS = 8192  # pixels that a CPU samples together: more, and activations leave its cache


def make_generator(
  model: Model,
  sampler: Sampler,
  guidance: float | None = None,
  state: str = "float32",
  quantiser: str | None = "edm",
) -> Generator:
  """Return the jitted `(params, seed, indices, label) -> [B,H,W,C]`: from key to pixels in one program.

  Images come out as uint8, latents (see `is_latent`) as float32. `generate` calls it, batch after batch.

  Args:
    model: What is sampled; its own params are not used.
    sampler: How to sample it.
    guidance: Scale of classifier-free guidance; needs labels, and evaluates the network twice as often,
      unless the network takes the scale as an input (`guidance_embedding`), as a student of guided
      distillation does. None for none.
    state: Type of x between network evaluations, float32 or float64 as in EDM's code; the network computes in
      its own either way, from the same noise. float64 needs JAX's x64 mode.
    quantiser: How images become uint8, a key of `QUANTISERS`; None: they stay as they are.

  Raises:
    UserError: Another type or quantiser, or float64 without the x64 mode; guidance of a model without
      classes.
  """
  if state not in STATES:
    raise UserError("state", state, one_of(STATES, state))
  if state == "float64" and jnp.result_type(float) != jnp.float64:
    raise UserError("state", state, "JAX's x64 mode, such as by JAX_ENABLE_X64=1 in the environment")
  if quantiser is not None and quantiser not in QUANTISERS:
    raise UserError("quantiser", quantiser, one_of(QUANTISERS, quantiser))
  check_guidance(model, guidance)

  @jax.jit
  def generator(params: Params, seed: Array, indices: Array, label: Array | None) -> Array:
    parts = _parts(len(indices), model.image_shape)
    if parts > 1:
      cut = lambda rows: rows.reshape(parts, -1)
      some = lambda rows: draw_images(params, seed, *rows)
      images = jax.lax.map(some, jax.tree.map(cut, (indices, label)))
      return images.reshape(len(indices), *images.shape[2:])
    return draw_images(params, seed, indices, label)

  def draw_images(params: Params, seed: Array, indices: Array, label: Array | None) -> Array:
    draw = per_sample_noise(jax.random.key(seed), indices)
    noise = lambda k, shape: draw(k, shape).astype(state)
    denoiser = _denoiser(model, params, label, guidance, indices.shape)
    denoiser = _in_float32(denoiser) if state == "float64" else denoiser
    x = sampler(denoiser, noise, (indices.shape[0], *model.image_shape))
    if quantiser is None or is_latent(model.image_shape):
      return x.astype(jnp.float32)
    return QUANTISERS[quantiser](x)

  return generator


def _parts(count: int, image_shape: tuple[int, int, int]) -> int:
  """Return in how many parts a batch is sampled, one after the other: on a CPU, as few as make none of more
  than `POSITIONS`, or less than twice as many; in one where the batch has no such divisor.
  """
  if not kernels.for_cpu():
    return 1
  least = -(-count // max(1, POSITIONS // math.prod(image_shape[:2])))
  return next((parts for parts in range(least, 2 * least) if count % parts == 0), 1)


def _denoiser(
  model: Model, params: Params, label: Array | None, guidance: float | None, shape: tuple[int, ...]
) -> Denoiser:
  bind = model.preconditioned
  if guidance is None:
    return bind(params, Condition(label))
  if label is None:
    raise UserError("guidance", guidance, "a conditional model: guidance needs labels")
  if model.network.get("guidance_embedding", False):
    return bind(params, Condition(label, guidance=jnp.full(shape, guidance, jnp.float32)))
  return guided(bind(params, Condition(label)), bind(params, Condition(jnp.full_like(label, -1))), guidance)


def _in_float32(denoiser: Denoiser) -> Denoiser:
  return lambda x, sigma: denoiser(x.astype(jnp.float32), sigma.astype(jnp.float32)).astype(x.dtype)


def balanced_labels(indices: np.ndarray, num_classes: int) -> np.ndarray | None:
  """Return label i mod num_classes for sample i, or None for an unconditional model.

  >>> balanced_labels(np.array([0, 1, 2, 3]), 3).tolist()
  [0, 1, 2, 0]
  """
  return (indices % num_classes).astype(np.int32) if num_classes else None


def local_mesh() -> jax.sharding.Mesh:
  """Return a mesh over this host's devices: its batches, and nobody else's, are spread over them."""
  return jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))


def replicate(params: Params, mesh: jax.sharding.Mesh) -> Params:
  """Return params on every device of a mesh; `generate` then moves them no more."""
  return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def generate(
  generator: Generator,
  params: Params,
  indices: Sequence[int] | np.ndarray,
  num_classes: int,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  label: int | None = None,
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yield [<= batch_size, H, W, C] for the samples numbered `indices`, in order.

  The last batch is padded to the same shape, so nothing recompiles and no sample depends on where it stands
  in a batch. The device works on the next batch while the caller has this one.

  Args:
    generator: From `make_generator`.
    params: Weights for the generator.
    indices: Numbers of the samples.
    num_classes: Of the model; 0 if unconditional. Labels are balanced: sample i has label i mod num_classes.
    batch_size: Raised to a multiple of the devices of `mesh`.
    mesh: Spread each batch over these devices.
    label: The class of all of them, instead of balanced ones.
    seed: Sample i depends on (seed, i) only; 0 to 2^32 - 1.

  Raises:
    UserError: A batch size below 1, or such a seed.
  """
  if batch_size < 1:
    raise UserError("batch_size", batch_size, "at least 1")
  check_seed(seed)
  numbers = np.asarray(indices, np.int32)
  sharding = None
  if mesh is not None:
    batch_size = -(-batch_size // mesh.size) * mesh.size
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    params = replicate(params, mesh)
  ahead: tuple[Array, int] | None = None
  for start in range(0, len(numbers), batch_size):
    chunk = numbers[start : start + batch_size]
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch_size - len(chunk))])
    classes = balanced_labels(padded, num_classes) if label is None else np.full(len(padded), label, np.int32)
    place = lambda array: jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)
    images = generator(params, np.uint32(seed), place(padded), None if classes is None else place(classes))
    if ahead:
      yield _fetched(*ahead)
    ahead = images, len(chunk)
  if ahead:
    yield _fetched(*ahead)


def generate_all(
  generator: Generator,
  model: Model,
  num: int,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  seed: int = 0,
  progress: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
  """Return samples 0 to num - 1 of a model, [num, H, W, C], on every host, each of which draws a part.

  Args:
    generator: From `make_generator`.
    model: Whose weights are sampled.
    num: How many.
    batch_size: Of each host; see `generate`.
    mesh: Devices of this host; by default all of them.
    seed: See `generate`.
    progress: Called with the number of samples of each batch.
  """
  # as many on every host, the last of them twice where it does not divide
  part = -(-num // jax.process_count())
  mine = np.minimum(np.arange(part) + jax.process_index() * part, num - 1)
  batches = []
  for batch in generate(
    generator, model.params, mine, model.num_classes, batch_size, mesh or local_mesh(), seed=seed
  ):
    batches.append(batch)
    progress(len(batch))
  images = np.concatenate(batches)
  if jax.process_count() > 1:
    images = np.asarray(multihost_utils.process_allgather(images, tiled=True))
  return images[:num]


def _fetched(images: Array, count: int) -> np.ndarray:
  # On a pod each host holds some rows only; every host gets them all.
  whole = images if images.is_fully_addressable else multihost_utils.process_allgather(images, tiled=True)
  return np.asarray(whole)[:count]
