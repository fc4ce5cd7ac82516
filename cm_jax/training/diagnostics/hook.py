"""Measurements on held-out images while a model trains: self-consistency error, gradient noise,
skipped steps; `diagnostics.jsonl`.

Images, noise levels and noise are drawn once from the run's seed,
so that curves are comparable across steps and runs.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from cm_jax.data.companions import companions
from cm_jax.data.sources import Framing, open_source
from cm_jax.diffusion.drifts import drift_of
from cm_jax.diffusion.precision import computing_in
from cm_jax.errors import UserError
from cm_jax.models import Experiment
from cm_jax.storage import lines, pictures, style
from cm_jax.storage.run import RunFolder
from cm_jax.training import sharding
from cm_jax.training.averages.track import read_average
from cm_jax.training.bins import BIN_EDGES, bin_index, bin_names
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.diagnostics.gradient_noise import gradient_noise
from cm_jax.training.diagnostics.self_consistency import Trajectories, errors, spread_levels, trajectories
from cm_jax.training.program import Program
from cm_jax.types import Array, Batch, Condition, Context, Params, TrainState

PARTS, PART_SIZE = 8, 32  # micro-batches, and images in each at most


class Diagnostics:
  """A hook for `loop.train`: measures the raw parameters and the first average,
  and appends one line to `diagnostics.jsonl`.

  A line holds `step`; `self_consistency_teacher`, or `self_consistency_monte_carlo` where there is no teacher
  whose trajectories could be followed (see `trajectories`), by parameters, further point and noise-level bin
  of t; `gradient_noise` of the objective at the raw parameters; `nonfinite_total` and `nonfinite_in_a_row`,
  the steps that the guard skipped. After the last step `self_consistency.png` is drawn. Everything is
  compiled once, and trajectories are followed once.

  Args:
    experiment: From `build`.
    workdir: The run folder. Lines of steps after its newest checkpoint are from a run that was cut off, and
      are dropped.
    source: Of the images; None for the held-out companion of the training source, and where none is known for
      the training images themselves, called "train".

  Raises:
    UserError: Images of another shape than the model's.
  """

  def __init__(self, experiment: Experiment, workdir: epath.PathLike, source: str | None = None):
    self._experiment, self._method, self._run = experiment, experiment.method, RunFolder.at(workdir)
    trained_on = experiment.config.data.source
    held_out = source or companions(trained_on).held_out
    data = experiment.config.data
    framing = Framing(data.crop, data.resolution, data.alpha, data.exif)
    spec, self._called = (held_out, held_out) if held_out else (trained_on, "train")
    self._source = experiment.source if spec == trained_on else open_source(spec, framing=framing)
    shape = tuple(self._source[0]["image"].shape)
    if shape != self._method.image_shape:
      raise UserError(
        "held-out images", f"{shape} in {spec}", f"the shape of the model's, {self._method.image_shape}"
      )
    store = CheckpointStore(workdir)
    self._last_valid = store.latest() or 0
    store.close()
    self._teacher = experiment.teacher
    program = Program(experiment)
    self._teacher_params, self._distance_params = program.frozen()
    self._batches: list[tuple[Batch, Trajectories]] = []
    replicated = sharding.replicated(experiment.mesh)
    like_params = program.shardings.params
    self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=like_params)
    self._ready = jax.jit(self._preprocessed)
    self._errors = jax.jit(self._binned_errors, out_shardings=replicated)
    self._add_gradient = jax.jit(
      self._gradient_added, out_shardings=(like_params, replicated), donate_argnums=0
    )
    self._squared_norm = jax.jit(lambda tree: optax.tree.norm(tree, squared=True), out_shardings=replicated)

  def __call__(self, step: int, state: TrainState) -> None:
    """Measure, and write from one process."""
    began = time.perf_counter()
    if not self._batches:
      self._batches = [self._ready(*self._drawn(part), self._teacher_params) for part in range(PARTS)]
    average = next(iter(self._experiment.config.averages))
    trajectory = "monte_carlo" if self._teacher is None else "teacher"
    record = {
      "step": step,
      "source": self._called,
      "images": PARTS * self._part_size(),
      f"self_consistency_{trajectory}": {
        "params": self._self_consistency(state.params),
        average: self._self_consistency(read_average(state.opt_state, average)),
      },
      "gradient_noise": self._gradient_noise(state),
      "nonfinite_total": int(optax.tree.get(state.opt_state, "total_notfinite")),
      "nonfinite_in_a_row": int(optax.tree.get(state.opt_state, "notfinite_count")),
    }
    record["seconds"] = time.perf_counter() - began
    if jax.process_index() == 0:
      lines.drop_after(self._run.diagnostics, min(self._last_valid, step - 1))
      lines.append(self._run.diagnostics, [lines.finite(record)])
      if step == self._method.num_steps:
        plot(lines.read(self._run.diagnostics), self._run.self_consistency)
    self._last_valid = step

  def _part_size(self) -> int:
    # No more than a training step holds at a time, and the same on every device.
    config, unit = self._experiment.config, self._experiment.mesh.size
    return max(min(PART_SIZE, config.batch_size // config.accumulation) // unit, 1) * unit

  def _key(self, number: int) -> Array:
    # Apart from the key of the initial parameters and those of all steps.
    return jax.random.fold_in(
      jax.random.fold_in(jax.random.key(self._experiment.config.seed), 2**32 - 2), number
    )

  def _drawn(self, part: int) -> tuple[Batch, Array, Array]:
    """Return a micro-batch of images, their noise levels and a key;
    strided, so that every one spans all levels."""
    experiment, count = self._experiment, PARTS * self._part_size()
    order = np.random.default_rng(experiment.config.seed).permutation(len(self._source))
    examples = [self._source[int(index)] for index in np.resize(order, count)[part::PARTS]]
    batch = {
      "image": np.stack([example["image"] for example in examples]),
      "label": np.array([example["label"] for example in examples], np.int32),
    }
    levels = np.asarray(spread_levels(count, self._method.noise))[part::PARTS]
    rows = lambda array: jax.device_put(array, sharding.batch_sharding(experiment.mesh))
    return {name: rows(array) for name, array in batch.items()}, rows(levels), self._key(part)

  def _preprocessed(
    self, batch: Batch, t: Array, key: Array, teacher_params: Params
  ) -> tuple[Batch, Trajectories]:
    preprocess_key, z_key = jax.random.split(key)
    ready = self._method.preprocess(batch, preprocess_key)
    x, drift = ready["image"], None
    if self._teacher is not None:
      drift = drift_of(self._teacher.preconditioned(teacher_params, Condition.of(ready)))
    z = jax.random.normal(z_key, x.shape, x.dtype)
    return ready, trajectories(x, z, t, self._method.noise, drift)

  def _binned_errors(
    self, params: Params, ready: Batch, points: Trajectories
  ) -> tuple[Array, dict[str, Array]]:
    f = self._method.student(params, Condition.of(ready))
    one_hot = jax.nn.one_hot(bin_index(points.t), len(BIN_EDGES) + 1)
    return one_hot.sum(axis=0), {name: values @ one_hot for name, values in errors(f, points).items()}

  def _self_consistency(self, params: Params) -> dict[str, dict[str, float]]:
    parts = [jax.device_get(self._errors(params, *batch)) for batch in self._batches]
    counts = sum(count for count, _ in parts)
    bins = [name.removeprefix("_") for name in bin_names("")]
    result = {}
    for point in parts[0][1]:
      totals = sum(sums[point] for _, sums in parts)
      result[point] = {
        name: float(total / n) for name, total, n in zip(bins, totals, counts, strict=True) if n
      }
    return result

  def _gradient_added(
    self,
    total: Params,
    params: Params,
    target_params: Params,
    frozen: tuple[Params, Params],
    ready: Batch,
    key: Array,
    step: Array,
  ) -> tuple[Params, Array]:
    objective, teacher = self._method.objective, self._teacher
    bound = None if teacher is None else teacher.preconditioned
    context = Context(self._method.student, bound, target_params, *frozen)
    draws = objective.draw(key, ready, step)
    with computing_in(self._experiment.config.matmul_precision):  # as in the step
      gradient = jax.grad(lambda params: objective.loss(params, context, ready, draws, step).loss)(params)
    return jax.tree.map(jnp.add, total, gradient), optax.tree.norm(gradient, squared=True)

  def _gradient_noise(self, state: TrainState) -> dict[str, Any] | None:
    needs, size = self._method.objective.needs, self._part_size()
    if any(int(state.step) >= start for start in needs.stages[1:-1]):
      return None  # the teacher is an earlier student by then, which only the loop has
    target_params = None if needs.target_decay is None else read_average(state.opt_state, "target")
    frozen = self._teacher_params, self._distance_params
    total, squares = self._zeros(state.params), []
    # A loop, since XLA's CPU backend is 20 times slower at convolutions inside a scan.
    for part, (ready, _) in enumerate(self._batches):
      total, square = self._add_gradient(
        total, state.params, target_params, frozen, ready, self._key(PARTS + part), state.step
      )
      squares.append(float(square))
    noise = gradient_noise(
      float(np.mean(squares)), float(self._squared_norm(total)) / PARTS**2, size, PARTS * size
    )
    return {"batch_small": size, "batch_big": PARTS * size, **noise._asdict()}


def plot(records: Sequence[dict[str, Any]], path: epath.PathLike) -> None:
  """Draw the self-consistency error per noise-level bin over steps:
  a column a further point, a row a set of parameters."""
  from matplotlib import colormaps

  quantity = next(name for name in records[-1] if name.startswith("self_consistency_"))
  last = records[-1][quantity]
  with pictures.figure(path, 10, style.INCHES * len(last)) as figure:
    panels = figure.subplots(
      len(last), len(next(iter(last.values()))), squeeze=False, sharex=True, sharey=True
    )
    for row, (params, points) in zip(panels, last.items(), strict=True):
      for panel, (point, bins) in zip(row, points.items(), strict=True):
        for i, name in enumerate(bins):
          values = [(line["step"], line[quantity][params][point].get(name)) for line in records]
          panel.plot(
            *zip(*values, strict=True),
            color=colormaps["viridis"](i / len(bins)),
            marker=".",
            label=name.replace("_", " "),
          )
        panel.set(
          title=f"{quantity.replace('_', ' ')}, {point}: {params}",
          xlabel="step",
          ylabel="rms over pixels",
        )
    drawn = [value for line in panels.flat for curve in line.lines for value in curve.get_ydata()]
    pictures.log_axis(panels[0][0], "y", drawn)  # of all panels, which share it
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center")
