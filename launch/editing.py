"""Draw what one consistency model makes of digits that it has not seen, task by task (CM Alg. 4).

python launch/editing.py                                     # of the run that launch/demo.sh trained
python launch/editing.py runs/digits/cd configs/results/editing/tasks.png
"""

import sys

import numpy as np

from cm_jax import edit, load_model
from cm_jax.data.sources import open_source
from cm_jax.sampling.operators import Mask, SuperResolution
from cm_jax.storage.pictures import GAP, new_figure, save_figure

DIGITS = 6


def panels(run: str) -> list[tuple[str, np.ndarray]]:
  """Return each task's title and its images, uint8 [rows, columns, 8, 8]: what is given, known and made."""
  model, source = load_model(run), open_source("digits:test")
  digits = np.stack([source[i]["image"] for i in range(DIGITS)])
  upper = np.concatenate([np.ones((4, 8)), np.zeros((4, 8))]).astype(np.float32)
  noise = np.random.default_rng(0).standard_normal(digits.shape)
  noisy = np.clip(np.rint(digits + 127.5 * 0.5 * noise), 0, 255).astype(np.uint8)
  made = {
    "inpaint:\ninput, kept, result": edit(model, Mask(upper), digits),
    "superres --factor=2:\ninput, block means, result": edit(model, SuperResolution(2), digits),
    "denoise --sigma=0.5:\ninput, result": edit(model, "denoise", noisy, sigma=0.5),
    "variation --num=3:\ninput, results": edit(model, "variation", digits, num=3),
    "interpolate\n--num=6": edit(model, "interpolate", num=DIGITS),
  }
  drawn = []
  for title, edited in made.items():
    columns = [edited.results.reshape(DIGITS, -1, 8, 8)]
    if edited.inputs is not None and edited.known is not None:
      shown = [edited.inputs, edited.known] if (edited.known != edited.inputs).any() else [edited.inputs]
      columns = [images.reshape(DIGITS, -1, 8, 8)[:, :1] for images in shown] + columns
    drawn.append((title, np.concatenate(columns, axis=1)))
  return drawn


def main(run: str = "runs/digits/cd", out: str = "configs/results/editing/tasks.png") -> None:
  """Edit, and draw the tasks side by side."""
  drawn = panels(run)
  figure = new_figure(9, 4.9)
  axes = figure.subplots(1, len(drawn), width_ratios=[images.shape[1] for _, images in drawn])
  for panel, (title, images) in zip(axes, drawn, strict=True):
    large = np.pad(images.repeat(8, 2).repeat(8, 3), ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=GAP)
    rows, columns, height, width = large.shape
    sheet = large.swapaxes(1, 2).reshape(rows * height, columns * width)[:-2, :-2]
    panel.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    panel.set_title(title, fontsize=9)
    panel.axis("off")
  save_figure(figure, out)
  print(out)


if __name__ == "__main__":
  main(*sys.argv[1:])
