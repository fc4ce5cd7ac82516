"""OpenAI's zero-shot editing on a Gaussian mixture; jcm's samplers and editing notebook on its network."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from cm_jax.convert import jcm
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.networks import as_net
from cm_jax.sampling.editing import fill_in
from cm_jax.sampling.interpolation import slerp
from cm_jax.sampling.ode import Euler, Heun
from cm_jax.sampling.operators import Colorize, Mask, SuperResolution
from cm_jax.types import NoiseRange, Operator
from tests.golden.d_samplers import Levels, float64, left_noise, levels_at, mixture
from tests.golden.losses import images, load, real
from tests.golden.networks import jcm_config, nchw
from tests.golden.options import read
from tests.golden.runner import Case, Handler, Result, each


def is_openai(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("iterative_colorization")


def run_openai(case: Case) -> Iterator[Result]:
  """The peer is given its first x; its draw k is that of our level k + 1."""
  known = read(case.kwargs, "kwargs", steps=40, t_min=0.002, t_max=80.0, rho=7.0)
  noise = NoiseRange(known.t_min, known.t_max, rho=known.rho)
  pattern = case.input("i_pattern_hwc_uint8").astype(float) > 0.5
  even = np.arange(len(case.input("i_images"))) // 7 % 2 == 0
  mask = np.where(even[:, None, None, None], pattern[None], ~pattern[None]).astype(float)
  operators = {"c": Colorize(), "i": Mask(mask, unknown=-1.0), "s": SuperResolution(8)}

  def compute(task: str, operator: Operator) -> Iterator[Result]:
    sigmas, end = levels_at(case.meta["ts"], known.steps, noise)
    f, seen = mixture(case, f"{task}_"), []

    def watched(x, sigma):
      seen.append((np.asarray(x), float(sigma[0])))
      return f(x, sigma)

    draws = real(case.input(f"{task}_noise")).transpose(0, 1, 3, 4, 2)
    reference, start = images(case.input(f"{task}_images")), images(case.input(f"{task}_x"))
    draw = lambda k, shape: draws[k - 1]
    with jax.disable_jit():  # level by level, so that they can be watched
      final = fill_in(watched, draw, reference, operator, sigmas, noise.sigma_min, start)
    final = final + left_noise(end, noise.sigma_min) * draws[len(sigmas) - 1]
    calls = np.stack([x for x, _ in seen]).transpose(0, 1, 4, 2, 3)
    found = {
      "final": nchw(final), "ref_images": nchw(operator.forward(reference)), "call_x": calls,
      "call_x_last": calls[-1], "call_sigma": np.array([sigma for _, sigma in seen]),
    }  # fmt: skip
    for name, value in found.items():
      if f"{task}_{name}" in case.outputs():
        yield Result(f"{task}_{name}", value, dtype="float64")
    yield Result(f"{task}_Q", is_input=True)  # its change of coordinates; ours has no matrix

  with float64():
    yield from each(operators, compute)


def is_jcm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("get_onestep_sampler")


def run_jcm(case: Case) -> Iterator[Result]:
  """In float64, for the Fourier phases; to the float32 tolerance (the peer's float64 is 1e-8 from ours)."""
  with float64():
    yield from _jcm_runs(case)


def _jcm_runs(case: Case) -> Iterator[Result]:
  config, std = jcm_config(case), case.meta["sampling_std"]
  weights = {name.replace("/", "."): array for name, array in case.weights.items()}
  module, params = load(jcm.describe(config, case.input("images").shape[1], weights, "boundary"), "float64")
  noise = NoiseRange(config["t_min"], config["t_max"], config["data_std"], config["rho"])
  f, D = (Preconditioned(as_net(module), precond(noise))(params) for precond in (Boundary, EDM))
  z, x, draws = (real(case.input(name)) for name in ("init_z", "images", "noise"))
  points = config["num_scales"]
  ours: dict[str, tuple[Any, Any]] = {
    "onestep": (Levels((std,), std, noise.sigma_min, clip=False), f),
    "heun_denoise1": (Heun(noise, points), D),
    "heun_denoise0": (Heun(noise, points, denoise=False), D),
    "euler_denoise1": (Euler(noise, points - 1, denoise=True), D),
    "euler_denoise0": (Euler(noise, points - 1), D),
  }
  run = lambda sampler, denoiser, noise_of: jax.jit(lambda: sampler(denoiser, noise_of, z.shape))()
  yield from each(ours, lambda name, made: [Result(name, run(*made, lambda k, shape: z))])
  ts = [int(t) for t in case.input("ts")]
  sigmas, end = levels_at(ts, 18, noise)
  # the notebook clips before it adds noise, the last too
  iterative = Levels(sigmas, std, noise.sigma_min, end=end)
  yield Result("multistep", lambda: run(iterative, f, lambda k, shape: draws[k - 1] if k else z))
  # the notebook's mask, as its reference shows it
  known = (case.arrays[case.outputs()["inpaint_ref"]] == np.asarray(x)).astype(float)
  operators = {
    "inpaint": Mask(known),
    "color": Colorize(),
    "superres": SuperResolution(case.meta["superres_patch_size"]),
  }

  def edited(name: str, operator: Operator) -> Iterator[Result]:
    reference = operator.forward(x)
    yield Result(f"{name}_ref", reference)
    # The notebook's first x has noise of ts[0], an index where a level is meant.
    start = reference + draws[0] * ts[0]
    filled = jax.jit(
      lambda: fill_in(f, lambda k, shape: draws[k], x, operator, sigmas, noise.sigma_min, start)
    )
    yield Result(name, filled() + left_noise(end, noise.sigma_min) * draws[len(sigmas)])

  yield from each(operators, edited)
  yield Result("slerp", slerp(z[0].ravel(), z[1].ravel(), real(case.input("slerp_t"))))


HANDLERS = [
  Handler(is_openai, run_openai, "samplers", ("kwargs", "ts", "denoiser")),
  Handler(is_jcm, run_jcm, "samplers", ("model_config", "sampling_std", "superres_patch_size")),
]
