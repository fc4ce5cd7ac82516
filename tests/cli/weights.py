"""A weights folder of the toy network, as convert would write it, or as it was before models had a kind."""

import json
from pathlib import Path

import jax

from cm_jax.assembly import build_network
from cm_jax.storage.weights import save_weights
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit


def weights_folder(
  path: Path, shape=(8, 8, 1), precond: str = "boundary", kind: str | None = "consistency"
) -> Path:
  """Write it; kind None: of model.json's format 1."""
  noise, network = NoiseRange(), {"name": "toy"}
  _, init = build_network(network, {"name": precond}, noise, shape, 0)
  about = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "num_classes": 0, "image_shape": shape}
  about |= {
    "network": network,
    "precond": {"name": precond},
    "sigmas_by_nfe": {},
    "source_sha256": "",
    "licence": "",
  }
  save_weights(path, quick_jit(init)(jax.random.key(0)), {**about, "kind": kind or "diffusion"})
  if kind is None:
    stored = json.loads((path / "model.json").read_text())
    del stored["kind"]
    (path / "model.json").write_text(json.dumps({**stored, "format": 1}))
  return path
