"""Overrides of every row: what is derived follows the batch size and the length, and what is stated stays."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import pytest

from cm_jax.assembly.components import construct
from cm_jax.assembly.method import Parts, length_of, make_parts
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS
from cm_jax.networks.base import sizes_of
from tests.configs.rows import ROWS, config_of, images_of

FRACTIONS = np.linspace(0.02, 0.98, 33)  # of a run
OF_ANOTHER = ("teacher", "init")  # a network that the config takes from a model, which is not there


def parts_of(config: ml_collections.ConfigDict) -> Parts:
  if config.network.name in OF_ANOTHER:
    config.network = {"name": "toy"}
  return make_parts(config)


def progress(parts: Parts, length: int, fractions: np.ndarray) -> dict[str, np.ndarray]:
  """Return N(k), the stage, mu(k) at fractions of the run."""
  steps = np.clip((fractions * length).astype(int), 0, length - 1)
  return {key: np.broadcast_to(value, steps.shape) for key, value in parts.objective.progress(steps).items()}


def durations(component: Any) -> Iterator[tuple[str, float]]:
  """Yield every duration in steps of a component and of those inside it."""
  for field in dataclasses.fields(component):
    value = getattr(component, field.name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      yield from ((f"{field.name}.{key}", inner) for key, inner in durations(value))
    elif field.name.endswith("_steps") and field.name != "num_steps":
      yield field.name, value


def all_durations(parts: Parts) -> dict[str, float]:
  named = {"objective": parts.objective, "optimizer": parts.recipe, **parts.averages}
  return {f"{name}.{key}": value for name, part in named.items() for key, value in durations(part)}


def stated(section: ml_collections.ConfigDict, where: str = "") -> Iterator[str]:
  """Yield the keys of a config that are durations in images, where they are not left to follow the run."""
  for key, value in section.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from stated(value, f"{where}{key}.")
    elif key.endswith("_images") and key != "num_images" and value:
      yield f"{where}{key}"


@pytest.mark.parametrize("row", ROWS)
def test_another_batch_size_or_length_changes_all_that_is_derived(row):
  config = config_of(row)
  before, length = parts_of(config), length_of(config)
  assert length == pytest.approx(config.num_images / config.batch_size, abs=1)
  in_steps = all_durations(before)
  # a curriculum's own length is in none of its fields: of a stated one the ends would not follow
  assert sum(1 for value in in_steps.values() if value) == len(list(stated(config)))
  for batch, share in ((2, 1), (1, 4), (4, 2)):  # times the batch size; a part of the length
    other = config_of(row)
    other.batch_size, other.num_images = config.batch_size * batch, config.num_images // share
    after, now = parts_of(other), length_of(other)
    assert now == pytest.approx(length / batch / share, abs=1)
    slack = 0.004 + 4 / now  # rounding to whole steps
    # curricula, and decays to zero, are where the row's are at the same fraction of the run, and end alike
    low, high = (progress(before, length, FRACTIONS + sign * slack) for sign in (-1, 1))
    for key, values in progress(after, now, FRACTIONS).items():
      ends = np.sort([low[key], high[key]], axis=0)
      assert np.all((ends[0] - 1e-6 <= values) & (values <= ends[1] + 1e-6)), key
    last = [progress(parts, n, np.ones(1)) for parts, n in ((before, length), (after, now))]
    assert {key: float(value[0]) for key, value in last[0].items()} == pytest.approx(
      {key: float(value[0]) for key, value in last[1].items()}, rel=1e-6
    )
    stages = [np.array(parts.objective.needs.stages) / n for parts, n in ((before, length), (after, now))]
    np.testing.assert_allclose(*stages, atol=slack)
    if config.optimizer.schedule in ("cosine", "linear"):
      peak, count = config.optimizer.learning_rate, max(len(stages[0]), 1)
      rates = [
        parts.recipe.rate()((FRACTIONS * n).astype(int)) for parts, n in ((before, length), (after, now))
      ]
      middle = np.min(np.abs(FRACTIONS[:, None] - stages[0][None]), axis=1, initial=1) > slack
      warm = max(parts.recipe.warmup_steps / n for parts, n in ((before, length), (after, now)))
      middle &= warm + slack < FRACTIONS  # so many images, not such a part of a run
      np.testing.assert_allclose(*(rate[middle] for rate in rates), atol=4 * slack * peak * count)
    # what a config states in images is so many images whatever the batch and the length
    for key, steps in all_durations(after).items():
      assert steps == pytest.approx(in_steps[key] / batch, abs=0.51), key


def sections(section: ml_collections.ConfigDict, where: str = "") -> Iterator[str]:
  """Yield the names of all sections of a config that have keys of their own, "" for itself."""
  yield where
  for key, inner in section.items():
    name = f"{where}.{key}".lstrip(".")
    if isinstance(inner, ml_collections.ConfigDict) and not (key == "network" and inner.name in OF_ANOTHER):
      yield from sections(inner, name)


@pytest.mark.parametrize("row", [pytest.param(r, marks=pytest.mark.slow if ":" in r else ()) for r in ROWS])
def test_a_key_that_nothing_reads_fails(row):
  for section in sections(config_of(row)):
    config = inner = config_of(row)
    for key in section.split(".") if section else ():
      inner = inner[key]
    with inner.unlocked():
      inner.nobody_reads = 3
    said = f"config.{section}.nobody_reads = 3: ".replace("..", ".")
    if section == "sigmas_by_nfe":  # its keys are numbers
      said = "config.sigmas_by_nfe = nobody_reads: "
    with pytest.raises(UserError, match=rf"^{re.escape(said)}expected "):
      parts_of(config)


@pytest.mark.parametrize("row", ROWS)
def test_the_network_of_a_row_takes_its_images(row):
  config, (shape, classes) = config_of(row), images_of(row)
  if config.network.name not in OF_ANOTHER:
    sizes = sizes_of(shape, classes if config.data.conditional else 0)
    assert construct(NETWORKS, config.network, "network", **sizes).img_resolution == shape[0]
