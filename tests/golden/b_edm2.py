"""EDM2: the U-Net with its uncertainty head, its blocks, full-size names, and post-hoc averages."""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert.edm import describe
from cm_jax.networks import layers, magnitude
from cm_jax.networks.edm2 import EDM2Block
from cm_jax.networks.weighting import LogVariance
from cm_jax.training.averages import posthoc
from cm_jax.training.averages.decays import HalfLife
from cm_jax.types import Condition
from tests.golden.a_edm import name_files, unit_params
from tests.golden.networks import (
  assemble,
  check_mode,
  evaluator,
  labels,
  nchw,
  nhwc,
  no_labels,
  reduced_precision,
  same_names,
  shaped,
)
from tests.golden.runner import Case, Handler, Result


def is_network(case: Case) -> bool:
  return case.meta.get("cls") == "Precond" and (case.path / "weights.npz").is_file()


def run_network(case: Case) -> Iterator[Result]:
  check_mode(case)
  foreign = describe("Precond", case.kwargs, case.weights)
  x, sigma = nhwc(case.input("x")), jnp.asarray(case.input("sigma"))
  condition, evaluate = Condition(labels(case.input("class_labels"))), evaluator(foreign)
  D, F, c_noise = evaluate(x, sigma, condition)
  yield Result("D", nchw(D))
  outputs = case.outputs()
  if "F" in outputs:
    yield Result("F", nchw(F))
  if "logvar" in outputs:
    weights = {name: array for name, array in case.weights.items() if name.startswith("logvar_")}
    head = {"logvar_fourier": {key: weights[f"logvar_fourier.{key}"] for key in ("freqs", "phases")}}
    head["logvar_linear"] = {"weight": weights["logvar_linear.weight"].T}
    value = LogVariance(len(weights["logvar_fourier.freqs"])).apply({"params": head}, c_noise)
    yield Result("logvar", value[:, None, None, None])
  if "D_nolabels" in outputs:
    yield Result("D_nolabels", nchw(evaluate(x, sigma, no_labels(condition))[0]))
  yield from forced_normalization(case, foreign)
  yield from reduced_precision(case, foreign, "D", x, sigma, condition)


def forced_normalization(case: Case, foreign) -> Iterator[Result]:
  """Yield the weights after a training forward of the peer, which normalises them in place."""
  prefix = "after_train_forward."
  names = [name for name in case.outputs() if name.startswith(prefix)]
  if names:
    tree = magnitude.normalize_weights(assemble(foreign)[1]["net"])
  for name in names:
    if name == prefix + "keys":
      yield Result(name, is_input=True)
      continue
    leaf = tree
    for key in name.removeprefix(prefix + "unet.").split("."):
      leaf = leaf[key]
    yield Result(name, np.asarray(leaf).transpose({4: (3, 2, 0, 1), 2: (1, 0), 0: (), 1: (0,)}[leaf.ndim]))


def is_names(case: Case) -> bool:
  return not case.meta and any(
    "unet.out_gain" in names.get("state_dict_shapes", {}) for names in name_files(case).values()
  )


def run_names(case: Case) -> Iterator[Result]:
  for what, names in name_files(case).items():
    arrays = shaped(names["state_dict_shapes"])
    yield from same_names(
      what, functools.partial(describe, "Precond", names["kwargs"], arrays), names["n_params"]
    )


def is_units(case: Case) -> bool:
  return {"Block", "mp_silu"} <= set(case.meta.get("cls", "").split(", "))


def run_units(case: Case) -> Iterator[Result]:
  a, b, c = (nhwc(case.input(name)) for name in "abc")
  for name in case.outputs():
    if name.startswith("blk"):
      yield Result(name, nchw(block(case, name.removesuffix("_y"))))
    elif name == "mp_silu":
      yield Result(name, nchw(magnitude.mp_silu(a)))
    elif match := re.fullmatch(r"mp_(sum|cat)_t([\d.]+)", name):
      join, other = {"sum": (magnitude.mp_sum, b), "cat": (magnitude.mp_cat, c)}[match[1]]
      yield Result(name, nchw(join(a, other, float(match[2]))))
    elif name in ("normalize_all", "normalize_dim1"):
      yield Result(name, nchw(magnitude.normalize(a, (1, 2, 3) if name == "normalize_all" else -1)))
    elif match := re.fullmatch(r"resample_(up|down|keep)_(\d+)", name):
      options = {
        "up": match[1] == "up",
        "down": match[1] == "down",
        "resample_filter": tuple(map(float, match[2])),
      }
      yield Result(name, nchw(layers.resample(nhwc(case.input("blk_down_x")), **options)))


def block(case: Case, name: str) -> jax.Array:
  """Evaluate a Block; the peer's arguments by their own names and defaults."""
  given = {"attention": False, "channels_per_head": 64, **case.kwargs[name]}
  heads = given["out_channels"] // given["channels_per_head"] if given["attention"] else 0
  same = {"flavor", "resample_mode", "res_balance", "attn_balance", "clip_act"}
  known = same | {
    "resample_filter",
    "attention",
    "channels_per_head",
    "in_channels",
    "out_channels",
    "emb_channels",
    "dropout",
  }
  if set(given) - known:
    raise ValueError(f"arguments of Block that nothing here handles: {sorted(set(given) - known)}")
  options = {key: given[key] for key in same if key in given}
  module = EDM2Block(
    given["out_channels"], heads=heads, resample_filter=tuple(given.get("resample_filter", (1, 1))), **options
  )
  return jax.jit(module.apply)(
    {"params": unit_params(case, name)}, nhwc(case.input(f"{name}_x")), jnp.asarray(case.input(f"{name}_emb"))
  )


def is_averages(case: Case) -> bool:
  return "phema" in case.meta.get("file", "")


def run_averages(case: Case) -> Iterator[Result]:
  stds, times, batch = case.input("stds"), case.input("nimg"), case.kwargs["batch_size"]
  exponents = posthoc.exponent(stds)
  yield Result("std_to_exp", exponents)
  yield Result("exp_to_std", posthoc.width(exponents))
  yield Result("beta", posthoc.decay(stds[None], times[:, None], batch))
  yield Result("response", posthoc.response([20, 35], stds[:2], 40))
  stored, wanted = (
    (case.input("in_ofs"), case.input("in_std")),
    (case.input("out_ofs"), case.input("out_std")),
  )
  gammas = [posthoc.exponent(std) for _, std in (stored, wanted)]
  yield Result(
    "correlation",
    posthoc.correlation(stored[0][:, None], gammas[0][:, None], wanted[0][None], gammas[1][None]),
  )
  yield Result("posthoc_coefs", posthoc.coefficients(*stored, *wanted))
  sequence = case.input("seq")
  yield Result(
    "ema_track", track(sequence, [posthoc.decay(stds, float(k + 1)) for k in range(len(sequence))])
  )
  for name in case.outputs():
    if match := re.fullmatch(r"traditional_ema_track_hl([\d.]+)Mimg_ramp([\d.]+)", name):
      with jax.enable_x64(True):
        decay = HalfLife(float(match[1]) * 1e6 / batch, float(match[2]))
        yield Result(name, track(sequence, [np.asarray(decay(k + 1)) for k in range(len(sequence))]))


def track(sequence: np.ndarray, decays: list[np.ndarray]) -> np.ndarray:
  """Return the averages, begun at 0, after each value."""
  values, average = [], np.zeros_like(decays[0], np.float64)
  for value, decay in zip(sequence, decays, strict=True):
    average = average + (1 - decay) * (value - average)
    values.append(average)
  return np.stack(values)


HANDLERS = [
  Handler(is_network, run_network, "networks", ("kwargs", "mode")),
  Handler(is_names, run_names, "networks"),
  Handler(is_units, run_units, "networks", ("kwargs",)),
  Handler(is_averages, run_averages, "averages", ("kwargs",)),
]
