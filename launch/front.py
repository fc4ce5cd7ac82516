"""Draw README's picture: what a consistency model learns, in two dimensions, and what it draws at once.

  python launch/front.py        # of the runs of configs/swiss_roll.py, and of the digits' CD model
  python launch/front.py --model=cifar16-cd --what="CIFAR-10 at 16x16" --num=64        # README's

From left to right: the plane of noise, each place in the colour of the place on the roll that f takes it to;
the paths of the teacher's ODE; noise after one evaluation of f; the images of a model, likewise.
At noise level sigma the plane is drawn smaller by sqrt(sigma^2 + sigma_data^2) / sigma_data, that noise and
points fill the same square.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image

from cm_jax import load_model
from cm_jax.cli.config_flags import find_config, read_file
from cm_jax.models import Model
from cm_jax.sampling.ode import Heun
from cm_jax.storage import pictures, style

COLOURS = matplotlib.colormaps["turbo"].resampled(512)
HALF = 1.55  # of the side of the square that is drawn
SIDE = 240  # places of the plane that are coloured
PATHS, POINTS = 160, 4000


def place_on_roll(x: np.ndarray) -> np.ndarray:
  """Return how far along the roll the points x [N, 2] are, 0 to 1: that of the nearest point of the roll."""
  import swiss_roll  # beside the config, whose folder `read_file` has put on the path

  angle = np.sqrt(np.linspace(*np.square(swiss_roll.TURNS), 400))
  curve = swiss_roll.roll(angle)
  parts = np.array_split(x, 1 + len(x) // 2000)
  nearest = np.concatenate([np.square(part[:, None] - curve).sum(-1).argmin(1) for part in parts])
  return nearest / (len(angle) - 1)


def evaluate(model: Model, x: np.ndarray, sigma: float) -> np.ndarray:
  """Return f(x [N, 2], sigma) of a model of points."""
  return np.asarray(jax.jit(model.denoiser())(jnp.asarray(x, jnp.float32)[:, None, None], sigma))[:, 0, 0]


def paths(model: Model, x: np.ndarray, num_steps: int = 40) -> np.ndarray:
  """Return the teacher's path from each of x [N, 2], in the square that is drawn: [num_steps + 1, N, 2]."""
  sampler = Heun(model.noise, num_steps)
  levels, denoise = np.asarray(sampler.levels()), jax.jit(model.denoiser())
  at, shown = jnp.asarray(x, jnp.float32)[:, None, None], []
  for t, r in itertools.pairwise(levels):
    shown.append(at * drawn_smaller(model, t))
    slope = (at - denoise(at, t)) / t
    ahead = at + (r - t) * slope
    at = ahead if r == 0 else at + (r - t) * (slope + (ahead - denoise(ahead, r)) / r) / 2
  return np.asarray(jnp.stack([*shown, at]))[:, :, 0, 0]


def drawn_smaller(model: Model, sigma: float) -> float:
  """Return the scale that noise of a level is drawn with."""
  deviation = model.noise.sigma_data
  return float(deviation / np.hypot(sigma, deviation))


def grid(images: np.ndarray) -> np.ndarray:
  """Return uint8 images [N, H, W, C] as `sample` draws them side by side: [h, w, 3]."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "grid.png")
    pictures.save_grid(images, path)
    with Image.open(path) as sheet:
      return np.asarray(sheet.convert("RGB"))


def draw(teacher: Model, student: Model, images: np.ndarray, what: str, out: str) -> None:
  """Draw the four panels and write them."""
  sigma = student.noise.sigma_max
  scale = drawn_smaller(student, sigma)
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(POINTS, 2)) * sigma
  axis = np.linspace(-HALF, HALF, SIDE) / scale
  plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
  colour = COLOURS(place_on_roll(evaluate(student, plane, sigma))).reshape(SIDE, SIDE, 4)
  start = noise[:PATHS]
  walked = paths(teacher, start)
  made = evaluate(student, noise, sigma)
  with pictures.figure(out, 15, 4.3) as figure:
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12, wspace=0.02)
    panels = figure.subplots(1, 4)
    square = (-HALF, HALF, -HALF, HALF)
    panels[0].imshow(colour, extent=square, origin="lower", interpolation="bilinear", alpha=0.9)
    panels[0].scatter(*(noise[:900] * scale).T, s=3, c="white", alpha=0.55, linewidths=0)
    tints = COLOURS(place_on_roll(walked[-1]))
    for line, tint in zip(walked.swapaxes(0, 1), tints, strict=True):
      panels[1].plot(*line.T, color=tint, linewidth=0.9, alpha=0.75, solid_capstyle="round")
    panels[1].scatter(*walked[0].T, s=7, c=style.FAINT, linewidths=0, zorder=3)
    panels[1].scatter(*walked[-1].T, s=9, c=tints, linewidths=0, zorder=4)
    panels[2].scatter(*made.T, s=5, c=COLOURS(place_on_roll(made)), linewidths=0, alpha=0.8)
    panels[3].imshow(grid(images))
    titles = (
      "the learned function f(x, σ):\nnoise, coloured by where it is taken",
      "the teacher walks there:\n79 evaluations a path",
      f"f jumps there:\n{POINTS:,} samples, 1 evaluation each",
      f"{what}:\n{len(images)} samples, 1 evaluation each",
    )
    for panel, title in zip(panels, titles, strict=True):
      panel.set_title(title, fontsize="large", pad=9, linespacing=1.35)
      panel.set(xticks=[], yticks=[], aspect="equal")
      panel.spines[:].set_visible(False)
    for panel in panels[:3]:
      panel.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF))


def main() -> None:
  """Load, draw, write."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--roll", default="runs/roll", help="the folder of the runs edm and cd")
  parser.add_argument("--student", default="cd", help="cd or ct")
  parser.add_argument("--model", default="digits-cd", help="whose images are drawn")
  parser.add_argument("--what", default="8x8 digits", help="what it calls them")
  parser.add_argument("--num", type=int, default=36)
  parser.add_argument("--out", default="configs/results/front.png")
  given = parser.parse_args()
  read_file(find_config("swiss_roll"))
  model = load_model(given.model)
  images = model.sample(given.num, sigmas=(model.noise.sigma_max,), seed=0)
  teacher, student = (load_model(Path(given.roll, name)) for name in ("edm", given.student))
  draw(teacher, student, images, given.what, given.out)
  print(given.out)


if __name__ == "__main__":
  main()
