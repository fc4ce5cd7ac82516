"""Ways to use a model that run, and make what its training has not prepared it for."""

from collections.abc import Sequence

from cm_jax.models import Model
from cm_jax.sampling.multistep import Multistep
from cm_jax.types import Sampler


def doubts(
  model: Model,
  samplers: Sequence[Sampler] = (),
  guidance: float | None = None,
  edits: bool = False,
  label: str | int | None = None,
) -> list[str]:
  """Return what a person should know of how a model is about to be used, a line each.

  Args:
    model: What is sampled or edits.
    samplers: How it is sampled.
    guidance: Scale; None for none.
    edits: It edits images.
    label: Then: their class; None or -1 for none.
  """
  found = []
  few_steps = [isinstance(sampler, Multistep) for sampler in samplers]
  if model.kind == "diffusion" and (edits or any(few_steps)):
    what = "editing with" if edits else "multistep sampling of"
    found.append(
      f"{what} a diffusion model: its D is the mean of all images it may be, so that they come out blurred; "
      "a consistency model is made from it by distillation, and steps of an ODE (heun) sample it as it is"
    )
  if model.kind in ("consistency", "flow_map") and not all(few_steps):
    found.append(
      f"an ODE sampler on a {model.kind.replace('_', ' ')} model: its f is where the path ends, and no "
      "denoiser whose drift can be followed; noise levels (sigmas such as 80 or 80,0.8) sample it"
    )
  if (
    guidance not in (None, 1.0)
    and model.guidable is False
    and not model.network.get("guidance_embedding", False)
  ):
    found.append(
      "guidance of a model that was trained with its labels always (label_dropout = 0): it has no idea "
      "of an image without a class, which guidance moves away from"
    )
  if edits and model.num_classes and label in (None, -1, "-1") and not model.guidable:
    found.append(
      f"no label, for a model of {model.num_classes} classes that was trained with its labels always"
    )
  return found
