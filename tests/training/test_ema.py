"""Post-hoc averages: closed form, convergence with the number of snapshots, and the files they are made
from."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from cm_jax.assembly import build, load_model
from cm_jax.errors import UserError
from cm_jax.storage.weights import flatten
from cm_jax.training import layout, loop, sharding
from cm_jax.training.averages import posthoc, snapshots
from cm_jax.training.averages.track import read_average
from cm_jax.training.program import Program
from tests import tiny
from tests.cli.weights import weights_folder
from tests.training.test_train import run_cli

T = 2000
TIMES = np.arange(1, T + 1)
SEQUENCES = {
  "linear": TIMES / T,
  "quadratic": (TIMES / T) ** 2,
  "relaxing": np.exp(-5 * TIMES / T),
  "oscillating": np.sin(12 * TIMES / T),
  "noisy": np.random.default_rng(0).normal(size=T),
}
POWERS = {"ema_05": {"name": "power", "sigma_rel": 0.05}, "ema_10": {"name": "power", "sigma_rel": 0.1}}


def average(values: np.ndarray, sigma_rel: float, time: int) -> float:
  """The power average at `time` of params values[j - 1] after step j, from the weights' closed form."""
  gamma = float(posthoc.exponent(sigma_rel))
  edges = (np.arange(time + 1) / time) ** (gamma + 1)
  return float(np.diff(edges) @ values[:time])


def reconstructed(values: np.ndarray, sigma_rel: float, every: int, stored=(0.05, 0.1)) -> float:
  found = [
    snapshots.Snapshot(None, time, dict(zip("ab", stored, strict=False)))
    for time in range(every, T + 1, every)
  ]
  have = [average(values, width, snapshot.step) for snapshot in found for width in stored]
  return float(snapshots.recipe(found, sigma_rel).weights @ have)


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.15])
@pytest.mark.parametrize("name", SEQUENCES)
def test_any_width_is_made_from_two_and_better_from_more_snapshots(name, sigma_rel):
  """The error is at most the profile's: |<q - sum x_i p_i, v>| <= ||q - sum x_i p_i|| ||v||, and falls by
  more than 1/n."""
  values, gamma = SEQUENCES[name], float(posthoc.exponent(sigma_rel))
  direct = average(values, sigma_rel, T)
  errors, bounds = [], []
  for number in (4, 20, 100):
    errors.append(abs(reconstructed(values, sigma_rel, T // number) - direct))
    times = np.repeat(np.arange(1, number + 1) * (T // number), 2)
    widths = np.tile([0.05, 0.1], number)
    weights = posthoc.coefficients(times, widths, [T], [sigma_rel])[:, 0]
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    # ||q||^2 = (gamma + 1)^2 / (2 gamma + 1) / T is the wanted profile's; ||v||^2 the sequence's
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * T) * np.linalg.norm(values)
    bounds.append(posthoc.profile_error(times, widths, T, sigma_rel, weights) * norm)
  assert (np.array(errors) <= np.array(bounds) * 1.01 + 1e-9).all()
  assert bounds[0] > 5 * bounds[1] > 25 * bounds[2]
  assert errors[2] < errors[0] / 20 and errors[2] < 2e-3 * np.abs(values).max()


def test_a_linear_sequence_has_a_closed_form():
  """Of p(tau) = tau/t the average is (gamma + 1)/(gamma + 2), up to half a step."""
  gamma = float(posthoc.exponent(0.075))
  assert reconstructed(SEQUENCES["linear"], 0.075, 100) == pytest.approx(
    (gamma + 1) / (gamma + 2) + 0.5 / T, abs=1e-5
  )


def test_a_stored_width_is_returned_as_it_is():
  found = [snapshots.Snapshot(None, time, {"a": 0.05, "b": 0.1}) for time in range(100, 1100, 100)]
  for sigma_rel, position in ((0.05, -2), (0.1, -1)):
    recipe = snapshots.recipe(found, sigma_rel)
    expected = np.zeros(20)
    expected[position] = 1
    np.testing.assert_allclose(recipe.weights, expected, atol=1e-9)
    assert recipe.profile_error < 1e-6 and recipe.step == 1000


def test_one_width_will_do_with_more_snapshots():
  direct = average(SEQUENCES["oscillating"], 0.15, T)
  one = [abs(reconstructed(SEQUENCES["oscillating"], 0.15, every, (0.1,)) - direct) for every in (400, 20)]
  assert one[1] < one[0] / 10 and one[1] < 2e-3


def run(workdir, every: int = 2, averages=None, objective=None, mesh=None, **changes):
  config = tiny.config(objective, snapshot_every=every, **changes)
  config.averages = {"ema": {"name": "constant", "mu": 0.9}, **(POWERS if averages is None else averages)}
  experiment = build(config)
  experiment = experiment if mesh is None else dataclasses.replace(experiment, mesh=mesh)
  state = loop.train(experiment, workdir, [(every, snapshots.recorder(experiment, workdir))], progress=False)
  return experiment, state


def contents(workdir) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted((workdir / "snapshots").iterdir())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run of 7 steps with a snapshot every 2, and its last state."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  return workdir, *run(workdir, num_steps=7)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """The folder of a run that was not trained, with snapshots of averages drawn at random."""
  workdir, rng = tmp_path_factory.mktemp("runs") / "recorded", np.random.default_rng(8)
  config = tiny.config(snapshot_every=2)
  config.averages = POWERS
  experiment = build(config)
  shapes = Program(experiment).shapes
  record = snapshots.recorder(experiment, workdir)
  draw = lambda leaf: np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype)
  drawn = lambda: shapes.replace(opt_state=jax.tree.map(draw, shapes.opt_state))
  for step in (2, 4, 6, 7):
    record(step, drawn())
  return workdir, experiment, drawn()


@pytest.mark.slow
def test_snapshots_hold_the_power_averages_and_nothing_else(trained):
  workdir, _, state = trained
  assert list(contents(workdir)) == [
    f"step_{step:08d}.safetensors" for step in (2, 4, 6, 7)
  ]  # and the last step
  found = snapshots.stored(workdir)
  assert [snapshot.step for snapshot in found] == [2, 4, 6, 7]
  assert found[0].sigma_rels == {"ema_05": 0.05, "ema_10": 0.1}
  arrays = safetensors.numpy.load_file(found[-1].path)
  expected = flatten(
    {name: {"net": jax.device_get(read_average(state.opt_state, name)["net"])} for name in POWERS}
  )
  assert arrays.keys() == expected.keys()
  for name, value in arrays.items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, expected[name])


@pytest.mark.slow
def test_the_snapshots_of_a_resumed_run_are_the_same_bytes(trained, tmp_path):
  whole = contents(trained[0])
  run(tmp_path, num_steps=3)
  assert list(contents(tmp_path)) == [f"step_{step:08d}.safetensors" for step in (2, 3)]
  later = tmp_path / "snapshots" / "step_00000004.safetensors"
  later.write_bytes(b"left by a run that was killed")
  (
    tmp_path / "snapshots" / "step_00000003.safetensors"
  ).unlink()  # of the end of the first part, not of the interval
  run(tmp_path, num_steps=7)
  assert contents(tmp_path) == whole


@pytest.mark.slow
def test_averages_split_over_devices_are_stored_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(layout, "LARGE_LEAF", 64)
  _, state = run(tmp_path, num_steps=2, mesh=sharding.make_mesh(2, 4))
  net = read_average(state.opt_state, "ema_05")["net"]
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(net))
  arrays = safetensors.numpy.load_file(snapshots.stored(tmp_path)[0].path)
  for name, leaf in flatten({"ema_05": {"net": net}}).items():
    np.testing.assert_array_equal(arrays[name], np.asarray(leaf))


@pytest.mark.slow
def test_averages_split_over_processes_are_stored_whole_by_the_first(tmp_path):
  lines = [
    "import sys",
    f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})",
    "from tests import tiny",
    "",
    "def get_config():",
  ]
  lines += [f"  config = tiny.config(num_steps=2, snapshot_every=2)\n  config.averages = {POWERS!r}"]
  lines += ["  config.network.width, config.mesh.fsdp = 8192, 2", "  return config", ""]
  (tmp_path / "config.py").write_text("\n".join(lines))
  job = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29523", "JAX_NUM_PROCESSES": "2"}
  two = [
    run_cli(
      "train",
      f"--config={tmp_path / 'config.py'}",
      "--noprogress",
      f"--workdir={tmp_path / 'run'}",
      JAX_PROCESS_ID=str(i),
      **job,
    )
    for i in range(2)
  ]
  for process in two:
    assert process.wait(180) == 0, process.stdout.read()
  assert list(contents(tmp_path / "run")) == ["step_00000002.safetensors"]
  arrays = safetensors.numpy.load_file(snapshots.stored(tmp_path / "run")[0].path)
  assert max(value.size for value in arrays.values()) >= layout.LARGE_LEAF
  for name, value in flatten(load_model(tmp_path / "run", average="ema_05").params).items():
    np.testing.assert_array_equal(arrays[f"ema_05/{name}"], value)


@pytest.mark.slow
def test_the_head_of_a_loss_stays_out(tmp_path):
  _, state = run(tmp_path, num_steps=2, objective=tiny.EDM)
  assert "weighting" in state.params
  names = safetensors.numpy.load_file(snapshots.stored(tmp_path)[0].path)
  assert {name.split("/")[1] for name in names} == {"net"}


def test_sums_are_those_of_the_files(recorded):
  found = snapshots.choose(recorded[0], 6)
  assert [snapshot.step for snapshot in found] == [2, 4, 6]
  weights = np.random.default_rng(0).normal(size=(6, 2))
  made = snapshots.combine(found, weights)
  files = [safetensors.numpy.load_file(snapshot.path) for snapshot in found]
  for column, tree in zip(weights.T, made, strict=True):
    for name, value in flatten(tree).items():
      parts = [
        file[f"{average}/{name}"].astype(np.float64) for file in files for average in ("ema_05", "ema_10")
      ]
      np.testing.assert_allclose(
        value, sum(w * part for w, part in zip(column, parts, strict=True)), rtol=1e-6, atol=1e-7
      )
      assert value.dtype == np.float32


@pytest.mark.parametrize(
  "averages, objective, message",
  [
    ({}, None, "config.run.snapshot_every = 2: expected 0, or an average with a power-function profile"),
    (
      {"a": POWERS["ema_05"], "b": POWERS["ema_05"]},
      None,
      "expected power-function averages of different sigma_rel",
    ),
    (None, {**tiny.PROGRESSIVE}, "config.run.snapshot_every = 2: expected 0 with progressive"),
  ],
)
def test_a_run_that_could_store_nothing_of_use_is_refused(averages, objective, message, tmp_path):
  config = tiny.config(objective, snapshot_every=2)
  config.averages = {"ema": {"name": "constant", "mu": 0.9}, **(POWERS if averages is None else averages)}
  if objective is not None:
    config.teacher.path = str(weights_folder(tmp_path / "teacher", precond="edm", kind="diffusion"))
  with pytest.raises(UserError) as caught:
    snapshots.recorder(build(config), tmp_path / "run")
  assert message in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_named(recorded, tmp_path):
  _, experiment, state = recorded
  (tmp_path / "snapshots").write_text("a file")
  with pytest.raises(UserError, match="a place that can be written"):
    snapshots.recorder(experiment, tmp_path)(2, state)


def save(path, arrays, about) -> None:
  path.parent.mkdir(exist_ok=True)
  safetensors.numpy.save_file(arrays, path, None if about is None else {"cm_jax": json.dumps(about)})


ABOUT = {"format": 1, "step": 2, "sigma_rels": {"a": 0.05}}  # of version 1


@pytest.mark.parametrize(
  "about",
  [
    *(None, {}, {"format": 2}, "text", {"format": 1}, {**ABOUT, "step": "2"}, {**ABOUT, "format": 2}),
    *({**ABOUT, "format": 3}, {**ABOUT, "format": True}, {**ABOUT, "step": 4}, {**ABOUT, "sigma_rels": {}}),
    *({**ABOUT, "sigma_rels": {"a": 0.4}}, {**ABOUT, "sigma_rels": {"a": 0.1, "b": 0.1}}),
  ],
)
def test_files_of_another_format_are_refused(about, tmp_path):
  save(tmp_path / "snapshots" / "step_00000002.safetensors", {"a/net/w": np.ones(2, np.float32)}, about)
  with pytest.raises(UserError, match="step_00000002.safetensors: expected format 1 to 2"):
    snapshots.stored(tmp_path)


def a_snapshot(workdir, step: int, widths, values) -> Path:
  """Write one as training does, of arrays instead of a state."""
  path = workdir / "snapshots" / f"step_{step:08d}.safetensors"
  trees = {name: {"net": {"a.w": value, "b": {"c": value[:1] * 3}}} for name, value in values.items()}
  snapshots.write(path, step, widths, flatten(trees))
  return path


def test_a_snapshot_is_what_was_written(tmp_path):
  """Every third byte with a bit flipped: refused in one line, or nothing that counts was in it."""
  rng = np.random.default_rng(3)
  values = {name: rng.normal(size=4).astype(np.float32) for name in ("narrow", "wide")}
  path = a_snapshot(tmp_path, 70, {"narrow": 0.04, "wide": 0.2}, values)
  stored, refused, harmless = path.read_bytes(), 0, 0

  def read():
    found = snapshots.choose(tmp_path)
    made = snapshots.combine(found, np.array([[0.25, 1.0], [0.75, -2.0]]))
    return found, [flatten(tree) for tree in made]

  found, whole = read()
  np.testing.assert_allclose(whole[0]["net/a.w"], 0.25 * values["narrow"] + 0.75 * values["wide"], rtol=1e-6)
  for at in range(0, len(stored), 3):
    damaged = bytearray(stored)
    damaged[at] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      again, trees = read()
    except UserError as error:
      assert str(path) in str(error) and "\n" not in str(error)
      refused += 1
    else:
      assert again == found and all(
        np.array_equal(tree[name], old[name]) for tree, old in zip(trees, whole, strict=True) for name in old
      )
      harmless += 1
  assert refused > 0.3 * len(stored) and harmless < 6  # spaces that fill up the header


def test_snapshots_of_old_have_no_sha256_and_load(tmp_path):
  for step in (2, 4):
    file = tmp_path / "snapshots" / f"step_{step:08d}.safetensors"
    save(file, {"a/net/w": np.full(2, step, np.float32)}, {**ABOUT, "step": step})
  a_snapshot(tmp_path, 6, {"a": 0.05}, {"a": np.ones(2, np.float32)})
  found = snapshots.choose(tmp_path, 4)
  assert [snapshot.sha256 for snapshot in found] == [None, None]
  np.testing.assert_array_equal(snapshots.combine(found, np.array([[0.5], [2.0]]))[0]["net"]["w"], [9.0, 9.0])
  assert snapshots.choose(tmp_path)[-1].sha256


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_damaged_files_are_named(length, recorded, tmp_path):
  path = tmp_path / "snapshots" / "step_00000002.safetensors"
  path.parent.mkdir()
  path.write_bytes((recorded[0] / "snapshots" / path.name).read_bytes()[:length])
  with pytest.raises(UserError, match="step_00000002.safetensors"):
    snapshots.stored(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path):
  import pickle

  class Bomb:
    def __reduce__(self):
      return (tmp_path.joinpath("ran").touch, ())

  path = tmp_path / "snapshots" / "step_00000002.safetensors"
  path.parent.mkdir()
  path.write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(UserError):
    snapshots.stored(tmp_path)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "other",
  [
    {"a/net/v": np.ones(2, np.float32)},
    {"a/net/w": np.ones((1, 2), np.float32)},
    {"b/net/w": np.ones(2, np.float32)},
  ],
  ids=["name", "shape", "average"],
)
def test_snapshots_of_another_network_are_not_mixed_in(other, tmp_path):
  save(tmp_path / "snapshots" / "step_00000002.safetensors", {"a/net/w": np.ones(2, np.float32)}, ABOUT)
  save(tmp_path / "snapshots" / "step_00000004.safetensors", other, {**ABOUT, "step": 4})
  found = snapshots.stored(tmp_path)
  with pytest.raises(
    UserError,
    match="step_00000004.safetensors: expected a with the parameters that .*step_00000002.safetensors has",
  ):
    snapshots.combine(found, np.ones((2, 1)))


def test_combining_holds_no_more_than_the_sums(recorded):
  """The most float64 memory at a time is the sums' own and a few tensors', however many snapshots there
  are."""
  import tracemalloc

  workdir = recorded[0]
  found = snapshots.choose(workdir)
  size = sum(value.size for value in safetensors.numpy.load_file(found[0].path).values()) // 2
  peaks = []
  for repeats in (1, 8):
    tracemalloc.start()
    snapshots.combine(found * repeats, np.ones((8 * repeats, 1)))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.2 * peaks[0] + 20_000, (peaks, size)
