"""launch/editing.py draws every task with a title a row and a class a column."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm_jax.data.sources import open_source

SCRIPT = Path(__file__).parents[2] / "launch" / "editing.py"


@pytest.mark.slow
def test_rows_of_tasks_have_titles(tmp_path):
  runpy.run_path(str(SCRIPT))["main"]("digits-cd", str(tmp_path / "x.png"))
  sheet = np.asarray(Image.open(tmp_path / "x.png"))[..., 0]
  rows, columns, top = 11, 8, 30
  left = sheet.shape[1] - columns * 102 + 6
  assert sheet.shape[0] == top + rows * 102 - 6
  assert all(sheet[top + i * 102 : top + i * 102 + 96, :left].min() < 100 for i in range(rows))
  assert all(sheet[:top, left + i * 102 : left + i * 102 + 96].min() < 100 for i in range(columns))
  inputs = np.stack([open_source("digits:test")[i]["image"][..., 0] for i in range(columns)])
  for i, image in enumerate(inputs):
    drawn = sheet[top : top + 96, left + i * 102 : left + i * 102 + 96]
    np.testing.assert_array_equal(drawn[::12, ::12], image)
