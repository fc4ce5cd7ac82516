"""The picture of a sweep: images a second over the batch size, a line for every number of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm_jax.storage import pictures

LINE = ("what", "by", "dtype", "devices", "nfe")  # what tells lines apart


def save(rows: Sequence[Mapping[str, Any]], path: Path | str) -> None:
  """Write the picture; bars are quartiles.

  Args:
    rows: From `throughput.measure`.
    path: A PNG.
  """
  lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
  for row in rows:
    lines.setdefault(tuple(row[key] for key in LINE), []).append(row)
  compared = len({row["by"] for row in rows}) > 1
  with pictures.figure(path, 7, 5) as figure:
    panel = figure.add_subplot()
    for key, points in lines.items():
      points = sorted(points, key=lambda row: row["batch"])
      rates = [row["images_per_second"] for row in points]
      low, high = zip(*(row["images_per_second_quartiles"] for row in points), strict=True)
      bars = [
        [max(rate - bound, 0) for rate, bound in zip(rates, low, strict=True)],
        [max(bound - rate, 0) for rate, bound in zip(rates, high, strict=True)],
      ]
      sizes = [row["batch"] for row in points]
      label = _label(dict(zip(LINE, key, strict=True)), compared)
      panel.errorbar(sizes, rates, bars, marker="o", capsize=2, label=label)
    batches = sorted({row["batch"] for row in rows})
    pictures.log_axis(panel, "x", batches)
    panel.set_xticks(batches, [str(batch) for batch in batches])
    pictures.log_axis(panel, "y", [row["images_per_second"] for row in rows])
    panel.set(xlabel="batch", ylabel="images/s")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)


def _label(line: Mapping[str, Any], compared: bool) -> str:
  """Return what a line is called; whose it is, where several are compared.

  >>> line = {"what": "sampling", "by": "cm_jax", "dtype": "float32", "devices": 1, "nfe": 35}
  >>> _label(line, compared=False)
  'sampling, 35 NFE, float32'
  >>> _label(line, compared=True)
  'sampling, 35 NFE, float32, cm_jax'
  """
  parts = [line["what"]]
  parts += [] if line["nfe"] is None else [f"{line['nfe']} NFE"]
  parts += [line["dtype"]]
  parts += [line["by"]] if compared else []
  parts += [] if line["devices"] == 1 else [f"{line['devices']} devices"]
  return ", ".join(parts)
