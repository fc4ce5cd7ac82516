"""Turn a checkpoint of EDM, EDM2, ECT, OpenAI or jcm, or one of our own runs, into a weights folder.

  python -m cm_jax convert --input=edm-cifar10-32x32-uncond-vp.pkl --out=weights/edm_cifar10
  python -m cm_jax convert --input=cd_imagenet64_lpips.pt --out=weights/cd_imagenet64
  python -m cm_jax convert --input=cd-lpips/checkpoints/checkpoint_80 --out=weights/cd --tree=params_ema
  python -m cm_jax convert --input=runs/ect --out=weights/mine --average=ema
  python -m cm_jax convert --input=weights/old --out=weights/new --kind=diffusion
  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --from=inception --out=weights/inception.safetensors
  python -m cm_jax convert --from=dinov2-l --out=weights/dinov2-l.safetensors

The last three fetch what is published, unless --input (and --heads) are the files: VGG16 and LPIPS' heads;
Inception-2015 of torch-fidelity or pytorch-fid (.pth) or NVIDIA (.pt); DINOv2 of facebookresearch (.pth) or
transformers (.safetensors).

--kind is asked for where nothing says what a model was trained to be: of weights folders from before
model.json said so.

--model, --teacher and --init accept the folder. Nothing in a file is ever run: the readers build arrays only,
and torch is not needed.
"""

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from cm_jax.cli.flags import check_new, define_overwrite, define_step, is_main, start
from cm_jax.errors import UserError, one_of, renamed
from cm_jax.storage import fetched, whole

FEATURES = ("inception", "dinov2-b", "dinov2-l")  # what measures images


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  text("input", None, "The checkpoint: a file, a run or a weights folder.")
  text("out", None, "The weights folder to write.")
  text(
    "from",
    None,
    "edm, ect, openai, jcm or cm_jax, found out when not given; or lpips, inception, dinov2-b, dinov2-l.",
  )
  text("heads", None, "With --from=lpips: the file of LPIPS' heads (vgg.pth); fetched if not given.")
  text("tree", "params_ema", "Of a jcm state: params, target_params or params_ema.")
  text("average", "ema", "Of our own run: the name of an average, or params.")
  define_step(values, "Checkpoint, of a run of our own")
  text("precond", None, "The preconditioning, where the file does not say it: edm or boundary.")
  text("kind", None, "diffusion, consistency or flow_map, where neither the file nor its name says it.")
  about = "The side of the images, where the file does not say it."
  flags.DEFINE_integer("image_size", None, about, lower_bound=1, flag_values=values)
  text("network", "{}", 'Options of the network that no file says, as JSON: {"num_head_channels": 64}.')
  define_overwrite(values)
  flags.DEFINE_bool("allow-nonfinite", False, "Go on where a weight is NaN or infinite.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Convert, and say what was taken for granted."""
  if values["from"].value == "lpips":
    make_lpips(values.input, values.heads, _file(values, "weights/lpips.safetensors"))
    return
  if values["from"].value in FEATURES:
    which = values["from"].value
    make_features(which, values.input, _file(values, f"weights/{which}.safetensors"))
    return
  for flag, what in (("input", "a checkpoint"), ("out", "the weights folder to write")):
    if not values[flag].value:
      raise UserError(f"--{flag}", "", what)
  from cm_jax.convert import Choices, convert
  from cm_jax.storage import weights

  precond, network = _section(values.precond), _json(values.network)
  choices = Choices(values.tree, precond, values.kind, values.image_size, network)
  check_new(values.out, values.overwrite)
  weights.check_target(values.out)
  start()
  if whole.place(values.input).is_dir():  # on every process: a checkpoint of several is read by all of them
    ours = load(values.input, values.step, values.average)
    choices = dataclasses.replace(choices, load=lambda path: ours)
  if not is_main():
    return
  nonfinite = bool(values["allow-nonfinite"].value)
  done = convert(_here(values.input), values.out, values["from"].value, choices, nonfinite)
  for assumption in done.checkpoint.assumed:
    print(f"assumed: {assumption}")
  print(f"licence: {done.checkpoint.licence}")
  print(f"kind: {done.checkpoint.kind}")
  name = done.checkpoint.network["name"]
  print(f"{done.folder}: {done.num_params:,} parameters of {name}, read as {done.format}")


def _here(given: str) -> str:
  """Return a folder as it is named, and a file of an object store as a copy of this machine."""
  return given if whole.place(given).is_dir() else str(fetched.local(given, "input"))


def make_lpips(vgg16: str | None, heads: str | None, out: str) -> None:
  """Write the weights of the distance LPIPS, from files of the user or fetched ones."""
  start()
  if not is_main():
    return
  from cm_jax.convert.lpips import convert_lpips, fetch

  about = convert_lpips(vgg16 or fetch("vgg16"), heads or fetch("heads"), out)
  print(f"licence: {about['licence']}")
  print(f"{out}: set config.objective.distance = {{'name': 'lpips', 'weights': '{out}'}}")


def make_features(which: str, given: str | None, out: str) -> None:
  """Write the weights of a network that measures images, from a file of the user or a fetched one."""
  start()
  if not is_main():
    return
  from cm_jax.convert import dinov2, inception

  if which == "inception":
    about = inception.convert_inception(given or inception.fetch(), out)
  else:
    about = dinov2.convert_dinov2(which, given or dinov2.fetch(which), out)
  print(f"licence: {about['licence']}")
  print(f"{out}: of {about['source']}, sha256 {about['source_sha256']}, published by {about['published_by']}")


def _file(values: flags.FlagValues, example: str) -> str:
  out = values.out
  if not out or Path(out).suffix != ".safetensors" or Path(out).is_dir():
    raise UserError("--out", out or "", f"the file to write, such as {example}")
  check_new(out, values.overwrite)
  return out


def load(path: str, step: int | str, average: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Read one of our folders, a run or weights, as `weights.load_weights` reads the latter."""
  import jax

  from cm_jax.assembly import load_model
  from cm_jax.storage import weights

  if weights.is_weights_folder(path):
    return weights.load_weights(path)
  with renamed("model", "input"):
    model = load_model(path, step, average)
  return jax.device_get(model.params), {**weights.info_of(model), "licence": "yours"}


def _section(name: str | None) -> dict[str, Any] | None:
  from cm_jax.diffusion.precond import PRECONDS

  if name is None:
    return None
  if name not in PRECONDS:
    raise UserError("--precond", name, one_of(PRECONDS, name))
  return {"name": name}


def _json(text: str) -> dict[str, Any]:
  from cm_jax.storage import bounded

  expected = 'a JSON object such as {"num_head_channels": 64}'
  fields = bounded.parse_json(text, "--network", expected)
  if not isinstance(fields, dict):
    raise UserError("--network", text, expected)
  return fields
