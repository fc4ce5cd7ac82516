"""Checkpoint files: each converts to its network's weights and outputs, or is refused and does nothing."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.assembly import load_model
from cm_jax.convert import Choices, convert, edm, jcm, openai
from cm_jax.errors import UserError
from cm_jax.storage import weights
from tests.golden.networks import jcm_config, labels, nchw, nhwc
from tests.golden.runner import Case, Handler, Result


def files(case: Case) -> list[Path]:
  return [
    path for path in sorted(case.path.iterdir()) if path.name not in ("io.npz", "meta.json", "weights.npz")
  ]


def is_torch(case: Case) -> bool:
  return "container" in case.meta and case.meta.get("cls") in {*edm.WRAPPERS, "UNetModel"}


def run_torch(case: Case) -> Iterator[Result]:
  """Convert every file of a case and evaluate the network that comes out, as `--model` would load it."""
  x, sigma, y = nhwc(case.input("x")), jnp.asarray(case.input("sigma")), case.input("y")
  label = labels(case.input("class_labels")) if y is None else jnp.asarray(y, jnp.int32)
  for path in files(case):
    with tempfile.TemporaryDirectory() as scratch:
      done = convert(path, Path(scratch) / "weights", choices=unsaid(case))
      model = load_model(done.folder)
      D = jax.jit(lambda x, sigma, model=model: model.denoiser(label)(x, sigma))(x, sigma)
    yield Result(output_of(path, case), nchw(D), note=path.name)
    yield from checksums(case, state_dict(path, case), path)


def output_of(path: Path, case: Case) -> str:
  """Return a file's output: "D_l2_fp16" for "cd_fake_l2_fp16.pt"; "D" where all files hold the same."""
  named = [
    name for name in case.outputs() if name.startswith("D_") and path.stem.endswith(name.removeprefix("D"))
  ]
  return max(named, key=len, default="D")


def unsaid(case: Case) -> Choices:
  """Return what the constructor was told and no state dict holds."""
  if case.meta["cls"] != "UNetModel":
    return Choices()
  heads = {
    key: case.kwargs[key]
    for key in ("num_heads", "num_head_channels", "num_heads_upsample")
    if key in case.kwargs
  }
  return Choices(image_size=case.kwargs["image_size"], network={"num_head_channels": -1} | heads)


def state_dict(path: Path, case: Case) -> dict[str, np.ndarray]:
  return dict((openai.read(path) if case.meta["cls"] == "UNetModel" else edm.read_file(path)).arrays)


def checksums(case: Case, arrays: dict[str, np.ndarray], path: Path) -> Iterator[Result]:
  """Yield the sums |w| and the list of names, if the case has them."""
  outputs = case.outputs()
  sums = {f"sd_checksum.{name}": np.abs(array.astype(np.float64)).sum() for name, array in arrays.items()}
  yield Result(
    "sd_checksum", parts={name: value for name, value in sums.items() if name in outputs}, note=path.name
  )
  if "state_dict_keys" in outputs:
    yield Result("state_dict_keys", np.array(list(arrays)), note=path.name)


def is_state(case: Case) -> bool:
  return "msgpack" in case.meta.get("container", "")


def run_state(case: Case) -> Iterator[Result]:
  """Convert every tree of parameters of a flax state."""
  x, t = jnp.asarray(case.input("x")), jnp.asarray(case.input("t"))
  config, outputs = jcm_config(case), case.outputs()
  choices: dict[str, Any] = {"image_size": case.meta["image_size"], "network": jcm.options(config)}
  (path,) = files(case)
  for tree in [name for name in jcm.TREES if name in case.meta["tree"]]:
    with tempfile.TemporaryDirectory() as scratch:
      done = convert(path, Path(scratch) / "weights", choices=Choices(tree=tree, **choices))
      model = load_model(done.folder)
      if f"distiller_{tree}" in outputs:
        yield Result(f"distiller_{tree}", jax.jit(lambda x, t, model=model: model.denoiser()(x, t))(x, t))
      if f"{tree}_checksum" in outputs:
        arrays = weights.flatten(weights.load_weights(done.folder)[0]).values()
        yield Result(f"{tree}_checksum", sum(np.abs(array.astype(np.float64)).sum() for array in arrays))


def is_bad(case: Case) -> bool:
  return isinstance(case.meta.get("files"), dict)


def run_bad(case: Case) -> Iterator[Result]:
  """Refuse every file with one line, leaving nothing behind and running nothing."""
  for name, described in case.meta["files"].items():
    markers = [Path(marker) for marker in mentioned(described)]
    before = {marker: marker.exists() and marker.stat().st_mtime_ns for marker in markers}
    with tempfile.TemporaryDirectory() as scratch:
      out = Path(scratch) / "weights"
      try:
        convert(case.path / name, out)
        message, refused = "was accepted", False
      except UserError as error:
        message, refused = str(error), True
      left = sorted(path.name for path in Path(scratch).iterdir())
    ran = [
      str(marker) for marker in markers if (marker.exists() and marker.stat().st_mtime_ns) != before[marker]
    ]
    passed = refused and "\n" not in message and not left and not ran
    yield Result(name, passed=passed, note=message.partition("expected ")[2][:150] or message, exact=True)


def mentioned(described: dict[str, Any]) -> list[str]:
  """Return the marker files that a description names: with their folder, or in /tmp."""
  return sorted({f"/tmp/{name}" for name in re.findall(r"golden_pwned_\w+", str(described))})


HANDLERS = [
  Handler(is_torch, run_torch, "files", ("kwargs",)),
  Handler(is_state, run_state, "networks", ("model_config", "image_size", "tree")),
  Handler(is_bad, run_bad, "files", ("files", "model_kwargs")),
]
