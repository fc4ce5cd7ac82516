"""The programs of a sweep: the sampler, from key to pixels, and the train step, compiled for every
batch size, number of evaluations, type and number of devices."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm_jax.benchmark.objectives import Program, Running, flops, step_of, temp_bytes
from cm_jax.benchmark.plan.flops import count
from cm_jax.benchmark.subjects import Subject
from cm_jax.diffusion.grids import karras_levels
from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.sampling.choose import own_multistep
from cm_jax.sampling.generate import balanced_labels, make_generator
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Heun
from cm_jax.types import Sampler

# name of the other, batch size, sampler or None for a train step -> call that waits for its result
Beside = Callable[[Subject, int, Sampler | None], dict[str, Callable[[], None]]]


@dataclasses.dataclass(frozen=True)
class Variant:
  """One program of a sweep, ready to be called.

  Attributes:
    about: What tells it apart: what, dtype, devices, batch, nfe, sampler.
    call: Runs it once and waits.
    images: A call.
    flops: A call, counted over the traced program with the plain forms of the layers (`plan.flops`).
    xla_flops: As counted by XLA before it optimises, the network's alone for sampling; None if unknown.
    compile_seconds: Tracing and compiling, with what the persistent cache gave.
    temp_bytes: Of intermediate values.
    beside: The same by others, by name.
  """

  about: dict[str, Any]
  call: Callable[[], None]
  images: int
  flops: float
  xla_flops: float | None
  compile_seconds: float
  temp_bytes: int | None
  beside: dict[str, Callable[[], None]]


def sampler_of(model: Model, nfe: int) -> Sampler:
  """Return the sampler that takes `nfe` network evaluations: tuned noise levels where the model has them, one
  step from sigma_max, Heun's method for an odd number, else multistep sampling along EDM's grid.

  Raises:
    UserError: Less than one.
  """
  if nfe < 1:
    raise UserError("nfe", nfe, "at least 1")
  known = {1: (model.noise.sigma_max,), **model.sigmas_by_nfe}
  if nfe not in known and nfe % 2:
    return Heun(model.noise, (nfe + 1) // 2)
  levels = known.get(nfe) or karras_levels(nfe + 1, model.noise)[:nfe]
  return Multistep(model.noise, tuple(levels), **own_multistep(model))


def sampling(
  subject: Subject,
  batches: Sequence[int],
  nfes: Sequence[int],
  devices: Sequence[int] = (1,),
  seed: int = 0,
  beside: Beside = lambda subject, batch, sampler: {},
) -> Iterator[Variant]:
  """Compile the generators of a sweep, from key to pixels: one for every batch, nfe and number of devices."""
  model, dtype = subject.model, subject.model.network.get("dtype", "float32")
  plain = subject.with_network(kernels="plain")
  for number in devices:
    mesh = mesh_of(number)
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    for nfe in nfes:
      sampler = sampler_of(model, nfe)
      generator = make_generator(model, sampler)
      for batch in batches:
        check_spread(batch, number)
        place = lambda array, rows=rows: jax.device_put(jnp.asarray(array), rows)
        labels = balanced_labels(np.arange(batch), model.num_classes)
        arguments = (
          params, np.uint32(seed), place(np.arange(batch, dtype=np.int32)),
          None if labels is None else place(labels),
        )  # fmt: skip
        before = time.perf_counter()
        compiled = jax.jit(generator).lower(*arguments).compile()
        took = time.perf_counter() - before
        one = _forward_flops(plain, batch)
        yield Variant(
          {"what": "sampling", "dtype": dtype, "devices": number, "batch": batch, "nfe": sampler.nfe}
          | {"sampler": type(sampler).__name__.lower()},
          functools.partial(waited, compiled, arguments),
          batch,
          count(jax.make_jaxpr(make_generator(plain.model, sampler))(*arguments)),
          one and one * sampler.nfe,
          took,
          temp_bytes(compiled),
          beside(subject, batch, sampler),
        )


def training(
  subject: Subject,
  batches: Sequence[int],
  devices: Sequence[int] = (1,),
  seed: int = 0,
  beside: Beside = lambda subject, batch, sampler: {},
) -> Iterator[Variant]:
  """Compile the train steps of a sweep: optimiser, averages and guard included, for a batch on the device."""
  dtype = subject.config.network.get("dtype", "float32")
  for number in devices:
    mesh = mesh_of(number)
    for batch in batches:
      check_spread(batch, number)
      program = _step(subject, batch)
      state, images, *rest = jax.jit(program.arguments, static_argnums=0)(seed)
      put = lambda tree, spec, mesh=mesh: jax.device_put(tree, NamedSharding(mesh, spec))
      whole, rows = PartitionSpec(), PartitionSpec("data")
      arguments = (put(state, whole), put(images, rows), *(put(part, whole) for part in rest))
      before = time.perf_counter()
      compiled = jax.jit(program.function, donate_argnums=0).lower(*arguments).compile()
      took = time.perf_counter() - before
      plain = _step(subject.with_network(kernels="plain"), batch)
      yield Variant(
        {"what": "train", "dtype": dtype, "devices": number, "batch": batch, "nfe": None, "sampler": None},
        Running(compiled, arguments[0], arguments[1:]),
        batch,
        count(jax.make_jaxpr(plain.function)(*jax.eval_shape(lambda plain=plain: plain.arguments(0)))),
        flops(plain.lower()),
        took,
        temp_bytes(compiled),
        beside(subject, batch, None),
      )


def lowerings(
  subject: Subject, batch: int, nfes: Sequence[int]
) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
  """Return what traces and lowers the train step, and the generator for every number of evaluations."""
  yield "train step", lambda: _step(subject, batch).lower()
  label = balanced_labels(np.arange(batch), subject.model.num_classes)
  arguments = subject.model.params, np.uint32(0), np.arange(batch, dtype=np.int32), label
  for nfe in nfes:
    sampler = sampler_of(subject.model, nfe)
    # made anew each time: a function that was traced is not traced again
    make = functools.partial(make_generator, subject.model, sampler)
    yield f"sampling, {sampler.nfe} NFE", functools.partial(_lowered, make, arguments)


def _lowered(make: Callable[[], Callable[..., Any]], arguments: tuple[Any, ...]) -> jax.stages.Lowered:
  return jax.jit(make()).lower(*arguments)


def waited(compiled: jax.stages.Compiled, arguments: tuple[Any, ...]) -> None:
  """Call a program and wait for its result."""
  jax.block_until_ready(compiled(*arguments))


def _step(subject: Subject, batch: int) -> Program:
  config, data = subject.config.copy_and_resolve_references(), subject.config.data
  config.batch_size = batch
  return step_of(config, tuple(data.image_shape), data.num_classes)


def _forward_flops(subject: Subject, batch: int) -> float | None:
  model = subject.model
  evaluate = lambda params, x, sigma: model.preconditioned(params)(x, sigma)
  x = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)
  lowered = jax.jit(evaluate).lower(model.params, x, jax.ShapeDtypeStruct((batch,), jnp.float32))
  return flops(lowered)


def mesh_of(count: int) -> Mesh:
  """Return a mesh over so many devices of this host.

  Raises:
    UserError: There are not as many.
  """
  found = jax.local_devices()
  if not 1 <= count <= len(found):
    raise UserError("devices", count, f"1 to {len(found)}, the devices of this host")
  return Mesh(np.array(found[:count]), ("data",))


def check_spread(batch: int, count: int) -> None:
  """Raise a UserError unless a batch spreads evenly over devices."""
  if batch % count:
    raise UserError("batch", batch, f"a multiple of {count} devices")
