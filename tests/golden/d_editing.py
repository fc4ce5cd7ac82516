"""OpenAI's zero-shot editing on a Gaussian mixture; jcm's samplers and editing notebook on its network."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import jcm
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.grids import karras_grid
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.networks import as_net
from cm_jax.sampling.editing import fill_in
from cm_jax.sampling.interpolation import slerp
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Euler, Heun
from cm_jax.sampling.operators import Colorize, Mask, SuperResolution
from cm_jax.types import NoiseRange, Operator
from tests.golden.d_samplers import float64, mixture
from tests.golden.losses import images, load, real
from tests.golden.networks import nchw
from tests.golden.runner import Case, Handler, Result


def levels_at(ts: list[int], num_scales: int, noise: NoiseRange) -> tuple[float, ...]:
  """Return the noise levels of the peers' indices; the last only says that the result is to be clean."""
  if ts[-1] != num_scales - 1:
    raise ValueError(f"a result with the noise of level {ts[-1]}")
  return tuple(float(level) for level in karras_grid(num_scales, noise)[jnp.asarray(ts[:-1])])


def is_openai(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("iterative_colorization")


def run_openai(case: Case) -> Iterator[Result]:
  """The peer is given its first x; its draw k is that of our level k + 1."""
  with float64():
    noise, pattern = NoiseRange(), case.input("i_pattern_hwc_uint8").astype(float) > 0.5
    even = np.arange(len(case.input("i_images"))) // 7 % 2 == 0
    known = np.where(even[:, None, None, None], pattern[None], ~pattern[None]).astype(float)
    operators: dict[str, Operator] = {
      "c": Colorize(),
      "i": Mask(known, unknown=-1.0),
      "s": SuperResolution(8),
    }
    sigmas = levels_at(case.meta["ts"], case.kwargs["steps"], noise)
    for task, operator in operators.items():
      f, seen = mixture(case, f"{task}_"), []

      def watched(x, sigma, f=f, seen=seen):
        seen.append((np.asarray(x), float(sigma[0])))
        return f(x, sigma)

      draws = real(case.input(f"{task}_noise")).transpose(0, 1, 3, 4, 2)
      reference = images(case.input(f"{task}_images"))
      final = fill_in(
        watched,
        lambda k, shape, draws=draws: draws[k - 1],
        reference,
        operator,
        sigmas,
        noise.sigma_min,
        images(case.input(f"{task}_x")),
      )
      yield Result(f"{task}_final", nchw(final), dtype="float64")
      yield Result(f"{task}_ref_images", nchw(operator.forward(reference)), dtype="float64")
      yield Result(f"{task}_call_sigma", np.array([sigma for _, sigma in seen]), dtype="float64")
      calls = np.stack([x for x, _ in seen]).transpose(0, 1, 4, 2, 3)
      if f"{task}_call_x" in case.outputs():
        yield Result(f"{task}_call_x", calls, dtype="float64")
      else:
        yield Result(f"{task}_call_x_last", calls[-1], dtype="float64")
    for task in ("c", "s"):  # its change of coordinates; ours has no matrix
      yield Result(f"{task}_Q", is_input=True)


def is_jcm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("get_onestep_sampler")


def run_jcm(case: Case) -> Iterator[Result]:
  """In float64, for the Fourier phases; to the float32 tolerance (the peer's float64 is 1e-8 from ours)."""
  with float64():
    yield from _jcm_runs(case)


def _jcm_runs(case: Case) -> Iterator[Result]:
  config = case.meta["model_config"]
  weights = {name.replace("/", "."): array for name, array in case.weights.items()}
  module, params = load(jcm.describe(config, case.input("images").shape[1], weights, "boundary"), "float64")
  noise = NoiseRange(config["t_min"], config["t_max"], config["data_std"], config["rho"])
  f, D = (Preconditioned(as_net(module), precond(noise))(params) for precond in (Boundary, EDM))
  z, x, draws = (real(case.input(name)) for name in ("init_z", "images", "noise"))
  points = config["num_scales"]
  ours: dict[str, tuple[Any, Any]] = {
    "onestep": (Multistep(noise, (noise.sigma_max,)), f),
    "heun_denoise1": (Heun(noise, points), D),
    "heun_denoise0": (Heun(noise, points, denoise=False), D),
    "euler_denoise1": (Euler(noise, points - 1, denoise=True), D),
    "euler_denoise0": (Euler(noise, points - 1), D),
  }
  run = lambda sampler, denoiser, noise_of: jax.jit(lambda: sampler(denoiser, noise_of, z.shape))()
  for name, (sampler, denoiser) in ours.items():
    yield Result(name, run(sampler, denoiser, lambda k, shape: z))
  ts = [int(t) for t in case.input("ts")]
  sigmas = levels_at(ts, 18, noise)
  multistep = run(Multistep(noise, sigmas), f, lambda k, shape: draws[k - 1] if k else z)
  # the notebook clips before it adds the last, zero noise
  yield Result("multistep", jnp.clip(multistep, -1, 1))
  # the notebook's mask, as its reference shows it
  known = (case.arrays[case.outputs()["inpaint_ref"]] == np.asarray(x)).astype(float)
  operators = {
    "inpaint": Mask(known),
    "color": Colorize(),
    "superres": SuperResolution(case.meta["superres_patch_size"]),
  }
  for name, operator in operators.items():
    reference = operator.forward(x)
    yield Result(f"{name}_ref", reference)
    # The notebook's first x has noise of ts[0], an index where a level is meant.
    start = reference + draws[0] * ts[0]
    filled: Callable[..., jax.Array] = lambda operator=operator, start=start: fill_in(
      f, lambda k, shape: draws[k], x, operator, sigmas, noise.sigma_min, start
    )
    yield Result(name, jax.jit(filled)())
  yield Result("slerp", slerp(z[0].ravel(), z[1].ravel(), real(case.input("slerp_t"))))


HANDLERS = [Handler(is_openai, run_openai, "samplers"), Handler(is_jcm, run_jcm, "samplers")]
