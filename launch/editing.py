"""Draw what one consistency model makes of digits that it has not seen, task by task (CM Alg. 4).

python launch/editing.py                                     # of the model that comes with cm_jax
python launch/editing.py runs/digits/cd tasks.png            # of the run that launch/demo.sh trained
"""

import sys

import numpy as np

from cm_jax import edit, load_model
from cm_jax.data.sources import open_source
from cm_jax.sampling.operators import Mask, SuperResolution
from cm_jax.storage.sheets import save_sheet

DIGITS = 8


def main(model_name: str = "digits-cd", out: str = "configs/results/editing/tasks.png") -> None:
  """Edit, and draw what is given, known and made: a row each, a column a digit."""
  model, source = load_model(model_name), open_source("digits:test")
  given = [source[i] for i in range(DIGITS)]
  digits = np.stack([item["image"] for item in given])
  upper = np.concatenate([np.ones((4, 8)), np.zeros((4, 8))]).astype(np.float32)
  noise = np.random.default_rng(0).standard_normal(digits.shape)
  noisy = np.clip(np.rint(digits + 127.5 * 0.5 * noise), 0, 255).astype(np.uint8)
  filled, larger = edit(model, Mask(upper), digits), edit(model, SuperResolution(2), digits)
  variations = edit(model, "variation", digits, num=3).results.reshape(DIGITS, 3, 8, 8, 1)
  rows = [
    ("input", digits),
    ("inpaint:\nwhat is kept", filled.known),
    ("inpaint:\nresult", filled.results),
    ("superres --factor=2:\nmeans of blocks", larger.known),
    ("superres --factor=2:\nresult", larger.results),
    ("denoise --sigma=0.5:\nnoisy input", noisy),
    ("denoise --sigma=0.5:\nresult", edit(model, "denoise", noisy, sigma=0.5).results),
    *((f"variation --num=3:\nresult {i + 1}", variations[:, i]) for i in range(3)),
    (f"interpolate --num={DIGITS}:\nof no input", edit(model, "interpolate", num=DIGITS).results),
  ]
  titles, images = zip(*rows, strict=True)
  save_sheet(np.stack(images), out, titles, [str(item["label"]) for item in given])
  print(out)


if __name__ == "__main__":
  main(*sys.argv[1:])
