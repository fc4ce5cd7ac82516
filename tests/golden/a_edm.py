"""EDM (and ECT): SongUNet and DhariwalUNet under every preconditioning, their blocks, full-size names."""

import functools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert.edm import WRAPPERS, describe
from cm_jax.convert.foreign import torch_layout
from cm_jax.diffusion.precond import IDDPM, VP
from cm_jax.networks import layers
from cm_jax.networks.blocks import UNetBlock
from cm_jax.types import Condition, NoiseRange
from tests.golden.networks import (
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

EDM2_ONLY = ("Precond",)


def is_network(case: Case) -> bool:
  cls = case.meta.get("cls", "")
  return cls in WRAPPERS and cls not in EDM2_ONLY and (case.path / "weights.npz").is_file()


def run_network(case: Case) -> Iterator[Result]:
  check_mode(case)
  foreign = describe(case.meta["cls"], case.kwargs, case.weights)
  x, sigma = nhwc(case.input("x")), jnp.asarray(case.input("sigma"))
  condition = Condition(labels(case.input("class_labels")), nhwc(case.input("augment_labels")))
  outputs, evaluate = case.outputs(), evaluator(foreign)
  D, F, c_noise = evaluate(x, sigma, condition)
  yield Result("D", nchw(D))
  if "F" in outputs:
    yield Result("F", nchw(F))
  if "c_noise" in outputs:
    yield Result("c_noise", c_noise)
  if "D_nolabels" in outputs:
    yield Result("D_nolabels", nchw(evaluate(x, sigma, no_labels(condition))[0]))
  if "D_noaugment" in outputs:
    yield Result("D_noaugment", nchw(evaluate(x, sigma, condition._replace(augment_label=None))[0]))
  if "D_scalar_sigma" in outputs:
    yield Result("D_scalar_sigma", nchw(evaluate(x, jnp.full_like(sigma, sigma[6]), condition)[0]))
  yield from reduced_precision(case, foreign, "D", x, sigma, condition)


def is_names(case: Case) -> bool:
  return not case.meta and any("model_type" in names.get("kwargs", {}) for names in name_files(case).values())


def name_files(case: Case) -> dict[str, dict]:
  """Return the lists of names and shapes in a case, by file name."""
  return {
    path.stem: json.loads(path.read_text())
    for path in sorted(case.path.glob("*.json"))
    if path.name != "meta.json"
  }


def run_names(case: Case) -> Iterator[Result]:
  for what, names in name_files(case).items():
    arrays = shaped_buffers(names["state_dict_shapes"], names["kwargs"])
    yield from same_names(
      what, functools.partial(describe, "EDMPrecond", names["kwargs"], arrays), names["n_params"]
    )


def shaped_buffers(shapes: dict[str, list[int]], kwargs: dict) -> dict[str, np.ndarray]:
  """Return arrays without memory, the resampling filters with the values `describe` checks."""
  taps = np.outer(*[kwargs.get("resample_filter", [1, 1])] * 2).astype(np.float32)
  arrays = shaped(shapes)
  for name in arrays:
    if name.endswith(".resample_filter") and arrays[name].shape == (1, 1, *taps.shape):
      arrays[name] = (taps / taps.sum())[None, None]
  return arrays


def is_units(case: Case) -> bool:
  return {"UNetBlock", "Conv2d"} <= set(case.meta.get("cls", "").split(", "))


def run_units(case: Case) -> Iterator[Result]:
  outputs = case.outputs()
  for name in outputs:
    if name.startswith("gn"):
      prefix = name.removesuffix("_y")
      params = {"weight": case.input(f"{prefix}_weight"), "bias": case.input(f"{prefix}_bias")}
      yield Result(
        name, nchw(jax.jit(layers.GroupNorm().apply)({"params": params}, nhwc(case.input(f"{prefix}_x"))))
      )
    elif name.startswith("conv_"):
      yield Result(name, nchw(convolve(case, name)))
    elif name.startswith("posemb"):
      channels, endpoint = name.removeprefix("posemb").split("_")
      yield Result(
        name,
        layers.positional_embedding(
          jnp.asarray(case.input("emb_x")), int(channels), endpoint=endpoint == "endpoint"
        ),
      )
    elif name == "fourier":
      freqs = case.input("fourier_freqs")
      x = jnp.asarray(case.input("emb_x"))[: case.arrays[outputs[name]].shape[0]]
      yield Result(name, layers.FourierEmbedding(2 * len(freqs)).apply({"params": {"freqs": freqs}}, x))
    elif name.startswith("blk_"):
      yield Result(name, nchw(block(case, name.removesuffix("_y"))))
  yield from levels(case)


def convolve(case: Case, name: str) -> jax.Array:
  mode, kernel, taps, *fused = name.removeprefix("conv_").split("_")
  x, kernel = nhwc(case.input("conv_x")), int(kernel[1:])
  options = {"up": mode == "up", "down": mode == "down", "resample_filter": tuple(map(float, taps[1:]))}
  if kernel == 0:
    return layers.resample(x, **options)
  params = {"weight": case.input(f"conv_w{kernel}").transpose(2, 3, 1, 0), "bias": case.input("conv_b")}
  return jax.jit(layers.Conv(params["bias"].shape[0], kernel, fused=bool(fused), **options).apply)(
    {"params": params}, x
  )


def block(case: Case, name: str) -> jax.Array:
  """Evaluate a UNetBlock; the peer's arguments by their own names and defaults."""
  given = {"attention": False, "num_heads": None, "channels_per_head": 64, **case.kwargs[name]}
  heads = (
    0 if not given["attention"] else given["num_heads"] or given["out_channels"] // given["channels_per_head"]
  )
  same = ("up", "down", "skip_scale", "eps", "resample_proj", "adaptive_scale")
  options = {key: given[key] for key in same if key in given} | {
    "resample_filter": tuple(given.get("resample_filter", (1, 1)))
  }
  known = {
    *same,
    "resample_filter",
    "attention",
    "num_heads",
    "channels_per_head",
    "in_channels",
    "out_channels",
    "emb_channels",
    "dropout",
  }
  if set(given) - known:
    raise ValueError(f"arguments of UNetBlock that nothing here handles: {sorted(set(given) - known)}")
  params = unit_params(case, name)
  return UNetBlock(given["out_channels"], heads, **options).apply(
    {"params": params}, nhwc(case.input(f"{name}_x")), case.input(f"{name}_emb")
  )


def unit_params(case: Case, prefix: str) -> dict:
  """Return the weights under a prefix as a tree in our layout, without the resampling filter."""
  layout, tree = torch_layout(), {}
  for name, array in case.weights.items():
    if name.startswith(f"{prefix}.") and not name.endswith(".resample_filter"):
      *branches, leaf = name.removeprefix(f"{prefix}.").split(".")
      node = tree
      for branch in branches:
        node = node.setdefault(branch, {})
      node[leaf] = layout(name, array)
  return tree


def levels(case: Case) -> Iterator[Result]:
  """Yield the noise levels of iDDPM and VP, where a case has them."""
  outputs, noise = case.outputs(), NoiseRange()
  value = lambda name: case.arrays[outputs[name]]
  if "iddpm_u" in outputs:
    iddpm = IDDPM(noise)
    u, index = iddpm.levels(), np.asarray(iddpm.index(jnp.asarray(value("iddpm_round_in"))))
    yield Result("iddpm_round_in", is_input=True)
    yield Result("iddpm_u", u)
    yield Result("iddpm_round_index", index, exact=True)
    yield Result("iddpm_round_sigma", u[index])
    yield Result("iddpm_sigma_minmax", u[[-2, 0]])
  if "vp_t" in outputs:
    vp, t = VP(noise), jnp.asarray(value("vp_t"), jnp.float32)
    yield Result("vp_t", vp.time(vp.sigma(t)))
    yield Result("vp_sigma", vp.sigma(t))
    yield Result("vp_sigma_inv", vp.time(jnp.asarray(value("vp_sigma"), jnp.float32)))
    yield Result("vp_sigma_minmax", vp.sigma(jnp.array([1e-5, 1.0])))


HANDLERS = [
  Handler(is_network, run_network, "networks", ("kwargs", "mode")),
  Handler(is_names, run_names, "networks"),
  Handler(is_units, run_units, "networks", ("kwargs",)),
]
