"""Make an average of any relative width from a run's snapshots (Karras et al. 2024, "EDM2", appendix C).

  python -m cm_jax train ... --config.run.snapshot_every=1000
  python -m cm_jax ema --workdir=runs/edm
  python -m cm_jax ema --workdir=runs/edm --sigma-rel=0.075 --out=weights/edm
  python -m cm_jax ema --workdir=runs/edm --sigma-rel=0.05,0.075,0.1 --step=20000 --out=weights/widths

The run's config.averages have profiles "power", such as 0.05 and 0.1. Without a width the command lists what
is stored; of several widths each gets a folder in --out. --model, --teacher and --init accept the folders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from cm_jax.cli.flags import check_new, define_overwrite, is_main, start
from cm_jax.errors import UserError

if TYPE_CHECKING:
  from etils import epath

  from cm_jax.models import Model
  from cm_jax.training.averages.snapshots import Snapshot


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("workdir", None, "The run.", flag_values=values)
  about = "Relative width, or several, between 0 and 0.289."
  flags.DEFINE_list("sigma-rel", None, about, flag_values=values)
  about = "Where the average stands: a stored step, -1 for the newest."
  flags.DEFINE_integer("step", -1, about, flag_values=values)
  about = "The weights folder to write; with several widths, a folder for a weights folder each."
  flags.DEFINE_string("out", None, about, flag_values=values)
  define_overwrite(values)


def main(values: flags.FlagValues) -> None:
  """List, or make and write."""
  if not values.workdir:
    raise UserError("--workdir", "", "a run with snapshots")
  widths = parse_widths(values["sigma-rel"].value or ())
  if widths and not values.out:
    raise UserError("--out", "", "the weights folder to write")
  if values.out and not widths:
    raise UserError("--sigma-rel", "", "the relative width to write, such as 0.075")
  from cm_jax.assembly import model_of
  from cm_jax.storage import run
  from cm_jax.training.averages import snapshots

  config = run.read_config(values.workdir)
  if config is None:
    raise UserError("--workdir", values.workdir, "a run folder (config.json, snapshots/)")
  found = snapshots.choose(values.workdir, values.step)
  folders = choose_folders(values.out, widths)
  for folder in folders:
    check_new(str(folder), values.overwrite)
  start()
  if not is_main():
    return
  print(described(values.workdir, found))
  if widths:
    write(model_of(config, {}), Path(values.workdir).absolute().name, found, widths, folders)


def parse_widths(texts: Sequence[str]) -> list[float]:
  """Read relative widths, each once.

  Raises:
    UserError: Not numbers between 0 and 0.289.

  >>> parse_widths(["0.075", ".1", "0.1"])
  [0.075, 0.1]
  """
  from cm_jax.training.averages.posthoc import exponent

  widths = {}
  for text in texts:
    try:
      widths[float(text)] = exponent(float(text))
    except (ValueError, UserError):
      expected = "relative widths between 0 and 0.289, such as 0.075 or 0.05,0.1"
      raise UserError("--sigma-rel", text, expected) from None
  return list(widths)


def choose_folders(out: str, widths: Sequence[float]) -> "list[epath.Path]":
  """Return the weights folder of each width: `out` itself for one.

  Raises:
    UserError: Something else is there.
  """
  from cm_jax.storage import weights, whole

  if len(widths) < 2:
    return [weights.check_target(out) for _ in widths]
  place = whole.absolute(out)
  if place.is_file() or weights.is_weights_folder(place):
    raise UserError("--out", out, f"a folder to put {', '.join(map(str, widths))} into")
  return [weights.check_target(place / str(width)) for width in widths]


def described(workdir: str, found: "Sequence[Snapshot]") -> str:
  """Return what is stored, in two lines."""
  averages = ", ".join(f"{name} (sigma_rel {width:g})" for name, width in found[-1].sigma_rels.items())
  size = sum(snapshot.path.stat().length for snapshot in found) / 1e6
  steps = ", ".join(str(snapshot.step) for snapshot in found)
  return f"{workdir}: {len(found)} snapshots ({size:.1f} MB) of {averages}\nsteps: {steps}"


def write(
  model: "Model",
  run: str,
  found: "Sequence[Snapshot]",
  widths: Sequence[float],
  folders: "Sequence[epath.Path]",
) -> None:
  """Make the averages at the last snapshot's step, write each as a weights folder, and say how good it is.

  Args:
    model: What the run trains, without weights.
    run: Its name.
    found: Its snapshots.
    widths: The relative widths.
    folders: Where each goes.
  """
  import numpy as np

  from cm_jax.storage import weights
  from cm_jax.training.averages import snapshots

  recipes = [snapshots.recipe(found, width) for width in widths]
  made = snapshots.combine(found, np.stack([recipe.weights for recipe in recipes], axis=1))
  info = {**weights.info_of(model), "source_sha256": "", "peer": "cm_jax", "licence": "yours"}
  for recipe, params, folder in zip(recipes, made, folders, strict=True):
    name = f"sigma_rel {recipe.sigma_rel} at step {recipe.step}"
    weights.save_weights(folder, params, {**info, "source": f"{run}, {name}"})
    largest = np.abs(recipe.weights).max()
    print(f"{folder}: {name}, profile error {recipe.profile_error:.2%}, largest coefficient {largest:.3g}")
