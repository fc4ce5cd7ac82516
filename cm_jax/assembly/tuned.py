"""The noise levels of `config.sigmas_by_nfe`."""

from typing import Any

from cm_jax.errors import UserError
from cm_jax.sampling.choose import listed
from cm_jax.sampling.multistep import check_sigmas
from cm_jax.types import NoiseRange


def tuned_levels(section: Any, noise: NoiseRange) -> dict[int, tuple[float, ...]]:
  """Return `config.sigmas_by_nfe`, checked: noise levels by number of network evaluations.

  Raises:
    UserError: A key that is no number of evaluations, or levels that are not so many, not descending, or out
      of range.

  >>> tuned_levels({"2": (80.0, 0.8)}, NoiseRange())
  {2: (80.0, 0.8)}
  """
  tuned = {}
  for nfe, sigmas in dict(section).items():
    if not (str(nfe).isdecimal() and len(str(nfe)) < 4 and int(nfe)):
      raise UserError("config.sigmas_by_nfe", nfe, "numbers of network evaluations, such as '2'")
    levels = check_sigmas(sigmas, noise, f"config.sigmas_by_nfe.{nfe}")
    if len(levels) != int(nfe):
      raise UserError(f"config.sigmas_by_nfe.{nfe}", listed(levels), f"{nfe} noise levels")
    tuned[int(nfe)] = levels
  return tuned
