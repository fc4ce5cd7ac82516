"""The report says what the files of the runs say, the newest first."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cm_jax.config import default, plain_json, sha256
from cm_jax.errors import UserError
from cm_jax.evaluation.comparison import compare
from cm_jax.evaluation.entries import named
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.records import Record, append
from cm_jax.evaluation.report import plot_losses, read_metrics, report

KEYS = [
  "method",
  "data",
  "nfe",
  "sigmas",
  "fd",
  "fd_floor",
  "class_entropy",
  "nn_distance",
  "nn_distance_real",
  "images_per_second",
]
KEYS += ["train_seconds", "train_steps", "seed", "config_sha256", "commit"]


def write_run(folder, seed=7, nfes=(1, 2), data="digits"):
  config = default()
  config.seed = seed
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(plain_json(config)))
  at = lambda step: {"step": step, "loss": 5 / step, "seconds": step / 10, "images_per_second": 100.0}
  lines = [at(step) for step in range(10, 200, 10)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  for nfe in nfes:
    shared = {"nfe": nfe, "sigmas": (80.0, 0.8)[:nfe], "config_sha256": sha256(config), "commit": "abc"}
    for value in (9.0, 0.5 / nfe):  # measured twice: the later one counts
      append(folder / "evaluations.jsonl", [Record(metric=f"fd_{data}", value=value, **shared)])
    others = {"class_entropy": 0.99, "nn_distance": 2.5, "images_per_second": 12345.0 / nfe}
    measured = [Record(metric=metric, value=value, **shared) for metric, value in others.items()]
    append(folder / "evaluations.jsonl", measured)
  real = {f"fd_{data}_floor": 0.38, "nn_distance_real": 2.1}
  append(folder / "evaluations.jsonl", [Record(metric=metric, value=value) for metric, value in real.items()])
  return sha256(config)


def test_report(tmp_path):
  digest = write_run(tmp_path / "cd")
  write_run(tmp_path / "edm", nfes=(35,))
  (tmp_path / "ict").mkdir()
  shown = report(tmp_path)
  entries = json.loads((tmp_path / "report.json").read_text())
  assert [(entry["method"], entry["nfe"]) for entry in entries] == [("edm", 35), ("cd", 1), ("cd", 2)]
  assert all(list(entry) == KEYS for entry in entries)
  assert entries[2] == {
    "method": "cd",
    "data": "digits",
    "nfe": 2,
    "sigmas": [80.0, 0.8],
    "fd": 0.25,
    "fd_floor": 0.38,
    "class_entropy": 0.99,
    "nn_distance": 2.5,
    "nn_distance_real": 2.1,
    "images_per_second": 6172.5,
    "train_seconds": 19.0,
    "train_steps": 190,
    "seed": 7,
    "config_sha256": digest,
    "commit": "abc",
  }
  assert shown in (tmp_path / "report.md").read_text() and len(shown.splitlines()) == 5
  head, _, *rows = shown.splitlines()
  columns = ["method", "NFE", "sigmas", "FD-digits", "floor", "class entropy", "NN (real)", "images/s"]
  assert [cell.strip() for cell in head.strip("|").split("|")] == [*columns, "train s", "steps"]
  start, end = "| cd     | 2   | 80, 0.8 | 0.250     | 0.380 ", "| 0.990         | 2.50 (2.10) | 6,172    "
  assert len(rows) == 3 and rows[2] == f"{start}{end}| 19      | 190   |"
  assert "FID" not in (tmp_path / "report.md").read_text()
  curves = np.asarray(Image.open(tmp_path / "loss_curves.png").convert("RGB"))
  assert (curves != 255).any(-1).mean() > 0.01
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
    "loss_curves.png",
    "report.json",
    "report.md",
  ]


def test_records_of_another_config_do_not_count(tmp_path):
  write_run(tmp_path / "cd", nfes=(1,))
  other = Record(metric="fd_digits", value=0.01, nfe=1, config_sha256="0" * 64)
  append(tmp_path / "cd" / "evaluations.jsonl", [other])
  report(tmp_path)
  assert json.loads((tmp_path / "report.json").read_text())[0]["fd"] == 0.5


def test_sampling_seeds_are_averaged_and_named(tmp_path):
  run = tmp_path / "cd"
  digest = write_run(run, nfes=(1,))
  at = lambda seed, value, **more: Record(
    metric="fd_digits", value=value, nfe=2, config_sha256=digest, seed=seed, **{"n": 100, **more}
  )
  # of an older step, of fewer samples, measured again: what is newest counts, a seed at a time
  older = [at(4, 90.0, step=7), at(5, 80.0, n=50), at(4, 70.0, commit="x")]
  append(run / "evaluations.jsonl", [*older, at(11, 1.5), at(4, 1.0), at(6, 2.0)])
  shown = report(tmp_path).splitlines()
  one, two = json.loads((tmp_path / "report.json").read_text())
  assert two["sampling_seeds"] == [4, 6, 11] and two["fd"] == 1.5 and "sampling_seeds" not in one
  assert shown[0].startswith("| method | seeds    | NFE |")
  assert shown[2].startswith("| cd     | -        | 1   |") and "| 0.500 " in shown[2]
  assert shown[3].startswith("| cd     | 4, 6, 11 | 2   |") and "| 1.500 " in shown[3]
  assert (
    "seeds: of the samples; a value is the mean over those it was measured with."
    in (tmp_path / "report.md").read_text()
  )
  newest = lambda: json.loads((tmp_path / "report.json").read_text())[1]
  distance = Record(metric="nn_distance", value=3.0, nfe=2, config_sha256=digest, seed=8, n=100)
  append(run / "evaluations.jsonl", [distance])
  report(tmp_path)
  assert newest()["sampling_seeds"] == [4, 6, 8, 11] and (newest()["fd"], newest()["nn_distance"]) == (
    1.5,
    3.0,
  )
  append(run / "evaluations.jsonl", [at(9, None)])
  report(tmp_path)
  assert newest()["fd"] is None  # no mean of fewer than are named
  append(run / "evaluations.jsonl", [at(8, 8.0, n=20)])
  report(tmp_path)
  assert newest()["fd"] == 8.0 and "sampling_seeds" not in newest()  # it is of other samples


def test_what_was_not_measured_is_null(tmp_path):
  write_run(tmp_path / "cd", nfes=())
  append(tmp_path / "cd" / "evaluations.jsonl", [Record(metric="fd_digits", value=1.0, nfe=1)])
  (tmp_path / "cd" / "metrics.jsonl").unlink()
  assert "| -" in report(tmp_path)
  entry = json.loads((tmp_path / "report.json").read_text())[0]
  absent = ("sigmas", "class_entropy", "images_per_second", "train_seconds", "train_steps", "commit")
  assert [entry[key] for key in absent] == [None] * 6


def test_any_runs_are_reported_those_of_the_demo_first(tmp_path):
  for name in ("zz", "ict", "ect", "aa", "edm", "cd"):
    write_run(tmp_path / name, nfes=(1,))
  report(tmp_path)
  entries = json.loads((tmp_path / "report.json").read_text())
  assert [entry["method"] for entry in entries] == ["edm", "cd", "ict", "ect", "aa", "zz"]


def test_other_data_have_a_table_of_their_own(tmp_path):
  write_run(tmp_path / "cd", nfes=(1,))
  write_run(tmp_path / "faces", nfes=(1, 2), data="folder")
  digits, faces = report(tmp_path).split("\n\n")
  assert "| FD-digits |" in digits and "| FD-folder |" in faces
  assert len(digits.splitlines()) == 3 and len(faces.splitlines()) == 4 and "faces" not in digits
  assert [entry["data"] for entry in json.loads((tmp_path / "report.json").read_text())] == [
    "digits",
    "folder",
    "folder",
  ]
  assert (tmp_path / "report.md").read_text().startswith("# FD-digits, FD-folder and speed by method\n")


def test_what_one_network_measured_against_one_set_is_one_table(tmp_path):
  """Also where its distance is called by another name than the set: train-features --name."""
  digest = write_run(tmp_path / "cd", nfes=())
  by = {"nfe": 1, "config_sha256": digest, "reference": "folder:pets"}
  own, other = {**by, "features_hash": "a1"}, {**by, "features_hash": "b2"}
  found = [Record(metric="fd_pets", value=3.0, **own), Record(metric="class_entropy", value=0.75, **own)]
  append(tmp_path / "cd" / "evaluations.jsonl", found)
  shown = report(tmp_path)
  assert len(shown.splitlines()) == 3 and "| 3.000 " in shown and "| 0.750 " in shown
  more = [
    Record(metric="fid", value=9.0, **other),
    Record(metric="nn_distance", value=2.5, **other),
  ]
  append(tmp_path / "cd" / "evaluations.jsonl", more)
  report(tmp_path)
  entries = json.loads((tmp_path / "report.json").read_text())
  assert [(entry["data"], entry["nn_distance"]) for entry in entries] == [("folder", 2.5), ("pets", None)]


def test_a_folder_without_a_config_is_reported_as_the_weights_that_were_measured(tmp_path):
  write_run(tmp_path / "weights", nfes=(1,))
  (tmp_path / "weights" / "config.json").unlink()
  report(tmp_path)
  (entry,) = json.loads((tmp_path / "report.json").read_text())
  assert entry["fd"] == 0.5 and entry["config_sha256"] is None and entry["seed"] is None


def test_a_new_metric_is_a_column(tmp_path, monkeypatch):
  class Mean:
    records, baseline, columns, about = (
      {"mean": "mean"},
      "real",
      {"mean": "{mean:.1f} of {mean_real:.1f}"},
      "mean: of the pixels.",
    )

  monkeypatch.setitem(METRICS, "mean", Mean())
  write_run(tmp_path / "cd", nfes=(1, 2))
  found = [Record(metric="mean", value=3.0, nfe=1), Record(metric="mean_real", value=4.0)]
  append(tmp_path / "cd" / "evaluations.jsonl", found)
  shown = report(tmp_path)
  assert "| 3.0 of 4.0 |" in shown and "| - of 4.0   |" in shown
  assert "mean: of the pixels." in (tmp_path / "report.md").read_text()


def test_the_longest_name_is_meant():
  for name, found in (
    ("kid_std_zip", ("kid", "kid_std", "zip", False)),
    ("kid_zip", ("kid", "kid", "zip", False)),
    ("fd_a_floor", ("fd", "fd", "a", True)),
    ("class_entropy", ("class_entropy", "class_entropy", None, False)),
  ):
    assert named(name) == found


def figures(monkeypatch) -> list[Figure]:
  """Return where every figure that is drawn from here on will be found."""
  drawn: list[Figure] = []
  save = Figure.savefig
  keep = lambda figure, *given, **options: (drawn.append(figure), save(figure, *given, **options))
  monkeypatch.setattr(Figure, "savefig", keep)
  return drawn


def test_loss_curves_have_a_panel_a_quantity_and_a_legend(tmp_path, monkeypatch):
  drawn = figures(monkeypatch)
  lines = [{"step": 10 * i, "loss": 3.0 / i, **({"fd": 9.0 / i} if i % 2 == 0 else {})} for i in range(1, 9)]
  never = [{"step": 5, "loss": 2.0, "fd": None}, {"step": 15, "loss": float("nan")}]
  plot_losses({"cd": lines, "ct": never}, tmp_path / "x.png")
  loss, other, measured, empty = drawn[0].axes
  assert (loss.get_ylabel(), measured.get_ylabel()) == ("loss of its objective", "fd")
  assert [panel.get_legend() is None for panel in (loss, other, measured)] == [False] * 3
  assert not empty.axison and len(measured.lines) == 1
  assert measured.lines[0].get_xydata().tolist() == [[20, 4.5], [40, 2.25], [60, 1.5], [80, 1.125]]
  assert other.lines[0].get_xydata().tolist() == [[5, 2]]


def test_a_loss_that_sinks_below_zero_is_seen(tmp_path, monkeypatch):
  """That of sCM and of EDM2's uncertainty: a logarithmic axis showed none of it."""
  drawn = figures(monkeypatch)
  sinking = [{"step": i, "loss": 0.5 - i} for i in range(1, 9)]
  plot_losses(
    {"sct": sinking, "cd": [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 4.0}]}, tmp_path / "x.png"
  )
  low, high = drawn[0].axes[0].get_ylim()
  assert low <= -7.5 < -0.5 <= high
  assert [panel.get_yscale() for panel in drawn[0].axes] == ["linear", "log"]


def test_a_methods_bars_stand_over_its_name(tmp_path, monkeypatch):
  """However few of all numbers of evaluations it has: a teacher's one bar stood beside it."""
  drawn = figures(monkeypatch)
  write_run(tmp_path / "cd" / "0", nfes=(1, 2, 4))
  write_run(tmp_path / "ect" / "0", nfes=(2, 4))
  write_run(tmp_path / "edm" / "0", nfes=(35,))
  compare(tmp_path)
  panel = drawn[0].axes[0]
  names = dict(zip([tick.get_text() for tick in panel.get_xticklabels()], panel.get_xticks(), strict=True))
  middles = [bar.get_x() + bar.get_width() / 2 for bar in panel.patches]
  for name, count in {"cd": 3, "ect": 2, "edm": 1}.items():
    near = [middle for middle in middles if abs(middle - names[name]) < 0.5]
    assert len(near) == count and np.mean(near) == pytest.approx(names[name])


def test_a_comparison_is_of_means_over_seeds_by_data(tmp_path):
  for seed in (0, 1):
    write_run(tmp_path / "cd" / str(seed), seed=seed)
  write_run(tmp_path / "edm" / "0", nfes=(35,))
  (tmp_path / "order.txt").write_text("edm\ncd\n")
  assert compare(tmp_path).splitlines() == [
    "| method | 1 NFE       | 2 NFE       | 35 NFE | train s | steps | seeds |",
    "|--------|-------------|-------------|--------|---------|-------|-------|",
    "| edm    | -           | -           | 0.01   | 19      | 190   | 1     |",
    "| cd     | 0.50 ± 0.00 | 0.25 ± 0.00 | -      | 19      | 190   | 2     |",
  ]
  assert (tmp_path / "comparison.png").exists()
  write_run(tmp_path / "faces" / "0", nfes=(1,), data="folder")
  (tmp_path / "order.txt").unlink()
  digits, faces = compare(tmp_path).split("\n\n")
  assert "faces" not in digits and "cd" not in faces
  written = json.loads((tmp_path / "comparison.json").read_text())
  assert [row["data"] for row in written["rows"]] == ["digits", "digits", "folder"]
  assert (tmp_path / "comparison.md").read_text().count(
    "FD-digits, FD-folder, mean and standard deviation"
  ) == 1


def test_nothing_to_compare(tmp_path):
  with pytest.raises(UserError, match="no evaluated run"):
    compare(tmp_path)


def test_nothing_to_report(tmp_path):
  with pytest.raises(UserError, match="no evaluated run"):
    report(tmp_path)
  assert not list(tmp_path.iterdir())


def test_metrics_after_a_resume(tmp_path):
  lines = [{"step": step, "loss": 1.0} for step in (10, 20, 30)] + [
    {"step": step, "loss": 2.0} for step in (15, 25)
  ]
  (tmp_path / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 35, "lo'
  )
  assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
    (10, 1.0),
    (15, 2.0),
    (25, 2.0),
  ]
  (tmp_path / "metrics.jsonl").write_text("nonsense\n")
  with pytest.raises(UserError, match="line 1"):
    read_metrics(tmp_path)
