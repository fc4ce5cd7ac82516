"""ECT's snapshots (locuslab/ect): EDM networks under ECT's pair of preconditionings."""

import dataclasses
from pathlib import Path

from cm_jax.convert.edm import WRAPPERS, from_snapshot, read_file
from cm_jax.convert.foreign import AS_IT_IS, Choices, Foreign

LICENCE = "none stated by its authors"
# what the authors sample with (recipes.md section 7), by the side of the images
_MIDDLE = {32: 0.821, 64: 1.526}


def read(path: Path, choices: Choices = AS_IT_IS) -> Foreign:
  """Read an ECT snapshot ("network-snapshot-latest.pkl"); its ImageNet networks are EDM2's.

  Raises:
    Refused: Another class than those of ECT, or a file that is not safe or not whole.
  """
  wrappers = {name: WRAPPERS[name] for name in ("ECMPrecond", "Precond")}
  foreign = from_snapshot(read_file(path), wrappers, "ECT")
  sigma_max = foreign.noise["sigma_max"]
  sigmas = {1: [sigma_max]}
  if foreign.image_shape[0] in _MIDDLE:
    sigmas[2] = [sigma_max, _MIDDLE[foreign.image_shape[0]]]
  # Whatever the class: EDM2's, which its ImageNet networks have, is a diffusion model's elsewhere.
  kind = "consistency"
  return dataclasses.replace(
    foreign, kind=kind, sigmas_by_nfe=sigmas, clip=False, renoise="ect", peer="ECT", licence=LICENCE
  )
