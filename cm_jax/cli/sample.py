"""Draw images from a run or a weights folder.

  python -m cm_jax sample --workdir=runs/cd --sigmas=80,0.8 --num=64 --seed=0 --out=x.png
  python -m cm_jax sample --model=weights/cd --nfe=2 --num=50000 --out=samples.npz
  python -m cm_jax sample --workdir=runs/edm --num_steps=18 --guidance=2 --label=3 --num=64 --out=folder/

--out is a PNG grid (.png), titled with the classes where the model has some, uint8 images in ADM's form
(.npz: arr_0 [N,H,W,C], arr_1 labels), EDM's data set format (.zip) or, with any other name, a folder of PNGs.
A run that is interrupted goes on where it stopped when it is started again; the result appears when it is
whole. Latents go to an .npz, as float32.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from etils import epath

from cm_jax.cli.flags import counted, define_model, is_main, load, read_samplers, start
from cm_jax.errors import UserError
from cm_jax.notices import notice, progress_bar
from cm_jax.storage import whole

if TYPE_CHECKING:
  from cm_jax.models import Model
  from cm_jax.types import Sampler


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  define_model(values)
  flags.DEFINE_string(
    "sigmas", None, "Noise levels of multistep sampling, descending: 80 or 80,0.8.", flag_values=values
  )
  flags.DEFINE_integer("num", 64, "Number of images.", lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", None, "x.png, x.npz, x.zip or a folder.", flag_values=values)
  flags.DEFINE_enum(
    "state", "float32", ("float32", "float64"), "Type of x between network evaluations.", flag_values=values
  )
  about = "Class of all images, its number or its name; by default every class equally often."
  flags.DEFINE_string("label", None, about, flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, sample, write."""
  check_out(values.out)
  start()
  import jax

  from cm_jax.diffusion.pixels import is_latent
  from cm_jax.sampling.doubts import doubts
  from cm_jax.sampling.generate import generate, local_mesh, make_generator, replicate
  from cm_jax.sampling.labels import class_number, class_titles
  from cm_jax.storage.pictures import most_bytes, save_grid

  if values.state == "float64":
    jax.config.update("jax_enable_x64", True)
  model = load(values)
  samplers = read_samplers(values, model, () if values.sigmas is None else (values.sigmas,))
  if len(samplers) > 1:
    field, several = ("--nfe", values.nfe) if values.nfe else ("--num_steps", values.num_steps)
    raise UserError(field, ",".join(map(str, several)), "one number: sample draws in one way")
  sampler, suffix = samplers[0], epath.Path(values.out).suffix
  if is_latent(model.image_shape) and suffix != ".npz":
    expected = f"a .npz file: the model makes latents {list(model.image_shape)}, not images"
    raise UserError("--out", values.out, expected)
  generator = make_generator(model, sampler, values.guidance, values.state)
  label = None if values.label is None else class_number(model, values.label)
  notice(*doubts(model, samplers, values.guidance))
  # Every host draws shards of its own on its own devices; the weights are placed once, not for every shard.
  mesh = local_mesh()
  draw = functools.partial(
    generate,
    generator,
    replicate(model.params, mesh),
    num_classes=model.num_classes,
    batch_size=values.batch_size,
    mesh=mesh,
    label=label,
    seed=values.seed,
  )
  if suffix == ".png":
    titles = class_titles(model.num_classes, model.class_names, values.num, label)
    whole.check_room("--out", values.out, most_bytes(values.num, model.image_shape, titles))
    if is_main():
      images = []
      with progress_bar(total=values.num, desc="sampling", unit="img") as bar:
        for batch in draw(range(values.num)):
          images.append(batch)
          bar.update(len(batch))
      save_grid(np.concatenate(images), values.out, titles=titles)
  else:
    stream(draw, described(values, model, sampler, label), values, model)
  if is_main():
    cost = counted(sampler.nfe, "network evaluation")
    print(f"{values.out}: {counted(values.num, 'image')}, {cost} each")


def described(
  values: flags.FlagValues, model: "Model", sampler: "Sampler", label: int | None
) -> dict[str, Any]:
  """Return what the samples are of: a run that goes on has to ask for the same."""
  from cm_jax.sampling.choose import listed, sampler_name, unusual

  about = {key: model.provenance.get(key) for key in ("path", "step", "average", "config_sha256")}
  options = {key: values[key].value for key in ("seed", "batch_size", "guidance", "state")}
  named = [sampler_name(sampler), listed(sampler.sigmas)]
  named += [f"{key}={value}" for key, value in unusual(sampler).items()]
  return {**about, **options, "label": label, "sampler": " ".join(named)}


def stream(
  draw: Callable[..., Iterator[np.ndarray]],
  request: dict[str, Any],
  values: flags.FlagValues,
  model: "Model",
) -> None:
  """Write the samples as they come, and the result once all hosts have theirs."""
  import jax
  from jax.experimental import multihost_utils

  from cm_jax.diffusion.pixels import is_latent
  from cm_jax.sampling.generate import balanced_labels
  from cm_jax.storage import lock
  from cm_jax.storage.samples import SampleStore, shard_size
  from cm_jax.training import sharding

  image_bytes = math.prod(model.image_shape) * (4 if is_latent(model.image_shape) else 1)
  shard = shard_size(values.batch_size, image_bytes)
  with contextlib.ExitStack() as holding:
    sharding.on_main(lambda: holding.enter_context(lock.held(lock.beside(values.out), "out", values.out)))
    store = SampleStore(values.out, request, values.num, shard, is_main())
    sharding.on_main(store.begin)
    missing = store.missing()
    done = values.num - sum(map(len, missing))
    with progress_bar(
      total=values.num, initial=done, unit="img", desc="sampling", disable=not is_main()
    ) as bar:
      store.collect(draw, missing[jax.process_index() :: jax.process_count()], bar.update)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("sampled")
    if is_main():
      labels, label = balanced_labels(np.arange(values.num), model.num_classes), request["label"]
      labels = labels if label is None else np.full(values.num, label, np.int32)
      store.finish(labels, model.class_names)


def check_out(out: str | None) -> None:
  """Check that --out can be written.

  Raises:
    UserError: It cannot, would overwrite a picture or a folder that is not empty, or has another ending.
  """
  if not out:
    raise UserError("--out", "", "where to write: x.png, x.npz or a folder")
  path = whole.absolute(out)
  is_file = path.suffix in (".png", ".npz", ".zip")
  if not is_file and re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", path.suffix) and not path.is_dir():
    raise UserError(
      "--out", out, "a name that ends in .png, .npz or .zip, or that of a folder, without an ending"
    )
  if path.suffix == ".png" and path.exists() and not path.is_dir():
    raise UserError("--out", out, "a path that does not exist yet: a picture is not overwritten")
  if is_file and path.is_dir():
    raise UserError("--out", out, f"a {path.suffix} file, not a folder")
  if not is_file and path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError("--out", out, "a new or empty folder, or a file name ending in .png, .npz or .zip")
  whole.check_writable("--out", path)
