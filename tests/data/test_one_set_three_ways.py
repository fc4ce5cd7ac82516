"""The same JPEGs as a folder, a zip and a tfds set: the same batches, for any number of hosts, from any step.

`python -m tests.data.test_one_set_three_ways ARCHIVE` runs it on the CIFAR-10 JPEG copy as a whole: 50,000
images in 10 classes.
"""

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm_jax import cli
from cm_jax.data.pipeline import FromSource, Pipeline, batches, rows_of
from cm_jax.data.sources import images, labels, open_source

EPOCHS, BATCH = 3, 64


def check(folder: Path, scratch: Path) -> None:
  """Prepare a folder of JPEGs both ways and compare all there is to compare."""
  specs = {"folder": f"folder:{folder}"}
  for form, out in (("zip", scratch / "set.zip"), ("array_record", scratch / "tfds")):
    name = [] if form == "zip" else ["--name=jpegs"]
    assert (
      cli.run(["data", "prepare", f"--source=folder:{folder}", f"--out={out}", f"--format={form}", *name])
      == 0
    )
    specs[form] = f"zip:{out}" if form == "zip" else f"tfds:jpegs:train:{out}"
  sources = {form: open_source(spec) for form, spec in specs.items()}
  pixels = {form: images(source) for form, source in sources.items()}
  for form, source in sources.items():
    np.testing.assert_array_equal(pixels[form], pixels["folder"])
    np.testing.assert_array_equal(labels(source), labels(sources["folder"]))
    assert source.num_classes == sources["folder"].num_classes
  # the folder's own is of the JPEGs, not of their pixels
  assert sources["zip"].fingerprint == sources["array_record"].fingerprint
  print(f"{len(pixels['zip']):,} images and labels alike in {', '.join(specs)}", file=sys.stderr)

  steps = -(-EPOCHS * len(pixels["folder"]) // BATCH)
  whole = Pipeline(rows_of(sources["folder"], np.inf), BATCH, seed=0)
  halves = {
    form: [
      Pipeline(rows_of(source, np.inf), BATCH, 0, process_index=index, process_count=2) for index in range(2)
    ]
    for form, source in sources.items()
  }
  for step in range(steps):
    expected = whole.batch(step)
    for form, parts in halves.items():
      local = [part.batch(step) for part in parts]
      for key, value in expected.items():
        np.testing.assert_array_equal(
          np.concatenate([batch[key] for batch in local]), value, err_msg=f"{form}, step {step}"
        )
  print(f"{steps:,} batches over {EPOCHS} epochs alike for 1 host and 2, from each of them", file=sys.stderr)

  for form, source in sources.items():
    streamed = Pipeline(FromSource(source), BATCH, seed=0)
    for start in (0, steps // 2, 10**7):
      for step, batch in enumerate(batches(streamed, start, 3, workers=2), start=start):
        for key, value in whole.batch(step).items():
          np.testing.assert_array_equal(batch[key], value, err_msg=f"{form}, step {step}")
  print("seek(step) by worker processes equals running there", file=sys.stderr)


@pytest.mark.slow
def test_a_small_set(tmp_path):
  rng = np.random.default_rng(0)
  for number in range(150):
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((16, 16))
    content = io.BytesIO()
    coarse.save(content, "JPEG", quality=75)
    file = tmp_path / "set" / f"class_{number % 3}" / f"{number:04d}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.getvalue())
  check(tmp_path / "set", tmp_path)


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder, tarfile.open(sys.argv[1]) as archive:
    archive.extractall(folder, filter="data")
    check(Path(folder) / "train", Path(folder))
