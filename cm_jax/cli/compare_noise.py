"""Draw the same noise through a teacher and its students, side by side, and correlate the images.

  python -m cm_jax compare noise --teacher=runs/edm --model=runs/cd --model=runs/ect --nfe=1,2 --out=x.png

A row a model and number of network evaluations: the teacher by Heun's method in --num_steps steps, each
student with its tuned noise levels (1 needs none; search-steps finds those of others). Classes take turns.
Beside the picture, in x.json, stand the correlations of each student's images with the teacher's from the
same noise, over --num of them: their mean, deviation and least, and the mean with images of the same class
from other noise, which says what a correlation of two unrelated images is.
"""

import re
from typing import TYPE_CHECKING

from absl import flags
from etils import epath

from cm_jax.cli.flags import define_seed, is_main, start
from cm_jax.errors import UserError
from cm_jax.storage import whole

if TYPE_CHECKING:
  from cm_jax.models import Model


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  number = lambda name, value, about: flags.DEFINE_integer(
    name, value, about, lower_bound=1, flag_values=values
  )
  flags.DEFINE_string("teacher", None, "Run or weights folder of a diffusion model.", flag_values=values)
  about = "Run or weights folder of a student; given once for each."
  flags.DEFINE_multi_string("model", [], about, flag_values=values)
  about = "Average of the parameters of runs, or params for the raw ones."
  flags.DEFINE_string("average", "ema", about, flag_values=values)
  flags.DEFINE_list("nfe", ["1", "2"], "Network evaluations of each student.", flag_values=values)
  number("num_steps", 18, "Of the teacher: 2 n - 1 network evaluations.")
  number("num", 256, "Images that the correlations are means over.")
  number("shown", 10, "Of these: images a row of the picture.")
  define_seed(values)
  number("batch_size", 64, "Images at a time.")
  flags.DEFINE_string("out", None, "The picture, FILE.png; the numbers go to FILE.json.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, draw, write, print."""
  check_out(values.out)
  if not values.teacher:
    raise UserError("--teacher", "", "a run or weights folder of a diffusion model")
  if not values.model:
    raise UserError("--model", "", "a run or weights folder of a student (several: once for each)")
  nfe = evaluations(values.nfe)
  start()
  from tqdm import tqdm

  from cm_jax.assembly import load_model
  from cm_jax.evaluation.same_noise import same_noise, save

  names = named([values.teacher, *values.model])
  load = lambda path: load_model(path, average=values.average)
  teacher = names[0], load(values.teacher)
  students: dict[str, Model] = {name: load(path) for name, path in zip(names[1:], values.model, strict=True)}
  total = values.num * (1 + len(students) * len(nfe))
  with tqdm(total=total, desc="sampling", unit="img") as bar:
    rows = same_noise(
      teacher, students, nfe, values.num, values.shown, values.num_steps, values.seed, values.batch_size,
      bar.update,
    )  # fmt: skip
  if is_main():
    print(save(rows, values.out, values.seed))
    print(f"{values.out}, {epath.Path(values.out).with_suffix('.json')}")


def check_out(out: str | None) -> None:
  """Check that --out is the name of a picture that can be written.

  Raises:
    UserError: It is not.
  """
  if not out or epath.Path(out).suffix != ".png":
    raise UserError("--out", out or "", "the picture to write, FILE.png")
  if whole.absolute(out).is_dir():
    raise UserError("--out", out, "a .png file, not a folder")
  whole.check_writable("--out", out)


def evaluations(texts: list[str]) -> list[int]:
  """Read --nfe.

  Raises:
    UserError: Not numbers from 1 on, or one twice.

  >>> evaluations(["1", "2"])
  [1, 2]
  """
  numbers = [int(text) for text in texts if re.fullmatch("[1-9][0-9]{0,3}", text)]
  if not numbers or len(numbers) < len(texts) or len(set(numbers)) < len(numbers):
    raise UserError("--nfe", ",".join(texts), "numbers of network evaluations, each once, such as 1,2")
  return numbers


def named(paths: list[str]) -> list[str]:
  """Return what models are called: the last part of their paths that they do not all share.

  Raises:
    UserError: The same model twice.

  >>> named(["runs/edm", "runs/cd/"]), named(["edm/0", "cd/0"])
  (['edm', 'cd'], ['edm/0', 'cd/0'])
  """
  parts = [re.sub("/+$", "", path).split("/") for path in paths]
  whole_names = ["/".join(part) for part in parts]
  if len(set(whole_names)) < len(paths):
    twice = next(name for name in whole_names if whole_names.count(name) > 1)
    raise UserError("--model", twice, "each model once")
  for depth in range(1, max(map(len, parts))):
    names = ["/".join(part[-depth:]) for part in parts]
    if len(set(names)) == len(paths):
      return names
  return whole_names
