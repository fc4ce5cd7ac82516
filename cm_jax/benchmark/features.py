"""Seconds that extracting features takes, a thousand images; Inception also beside torch, same weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from cm_jax.benchmark.records import Column, text
from cm_jax.benchmark.timing import ratio
from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.features import Extractor, load_features
from cm_jax.evaluation.features import dinov2 as dinov2_features
from cm_jax.evaluation.features.inception import TAPS, InceptionFeatures, of_arrays
from cm_jax.evaluation.timing import in_turns
from cm_jax.networks import dinov2, inception, inception_units

BATCH = 16
MANY = 1024  # images of networks that take one small size
SIDE = 299  # of images for networks that take any size: nothing is gained by their being small
INCEPTION = "inception"
BESIDE = ("torch",)


def measure(
  names: Sequence[str],
  weights: str | None,
  beside: str | None,
  batch_size: int,
  rounds: int,
  seed: int = 0,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Time a batch of images through each extractor, in turns.

  Args:
    names: Keys of `FEATURES`, or folders that train-features wrote.
    weights: File of the one extractor's weights; None for random ones.
    beside: "torch" to time Inception in torch as well, with the same weights, on the same CPUs; None for not.
    batch_size: Images at a time, of networks that take any size.
    rounds: Timings of each, of which medians are taken.
    seed: Of weights and images.
    progress: Called after each timing.

  Returns:
    Rows with name, image_shape, seconds_per_1000 images, ratio (torch's time over this one's, the median over
    rounds; of Inception) and `seconds`, those of every round.

  Raises:
    UserError: An extractor that there is not; torch that is not installed, or nothing to hold it beside.
  """
  if weights is not None and len(names) != 1:
    raise UserError("weights", weights, "the features of one network, whose they are")
  extractors = {name: _extractor(name, weights, batch_size, seed) for name in names}
  random = np.random.default_rng(seed)
  images = {
    name: random.integers(0, 256, _shape(extractor, batch_size), np.uint8)
    for name, extractor in extractors.items()
  }
  runs: dict[str, Callable[[np.ndarray], object]] = dict(extractors)
  if beside is not None:
    mine = extractors.get(INCEPTION)
    if not isinstance(mine, InceptionFeatures):
      raise UserError("beside", beside, f"{INCEPTION} among the features")
    runs[beside], images[beside] = in_torch(_torch(beside), mine.params), images[INCEPTION]
  programs = {name: functools.partial(_run, run, images[name]) for name, run in runs.items()}
  seconds = in_turns(programs, rounds, progress=progress)
  rows = []
  for name, times in seconds.items():
    compared = ratio(seconds[beside], times) if beside is not None and name == INCEPTION else None
    per_1000 = float(np.median(times)) / len(images[name]) * 1000
    about = {"name": name, "image_shape": list(images[name].shape[1:]), "seconds_per_1000": per_1000}
    rows.append({**about, "ratio": compared, "seconds": times})
  return rows


def _shape(extractor: Extractor, batch_size: int) -> tuple[int, ...]:
  """Return the shape of the images that are timed: small ones are many, they go in batches of their own."""
  own = extractor.image_shape
  return (batch_size, SIDE, SIDE, 3) if own is None else (max(batch_size, MANY), *own)


def _run(run: Callable[[np.ndarray], object], images: np.ndarray) -> None:
  run(images)


def _extractor(name: str, weights: str | None, batch_size: int, seed: int) -> Extractor:
  if weights is None and name in RANDOM:
    return RANDOM[name](batch_size, seed)
  return load_features(name, weights)


def random_inception(name: str, batch_size: int, seed: int) -> InceptionFeatures:
  """Return Inception with random weights that keep the size of what goes through it."""
  random = np.random.default_rng(seed)
  return of_arrays(random_arrays(random), name, batch_size=batch_size)


def random_arrays(random: np.random.Generator) -> dict[str, np.ndarray]:
  """Return a random set of Inception's arrays; see `networks.inception.shapes`."""
  arrays = {}
  for name, shape in inception.shapes().items():
    draw = random.standard_normal(shape)
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 1
    around = 1.0 if name.endswith(("bn.weight", "running_var")) else 0.0
    spread = np.sqrt(2 / fan_in) if len(shape) > 1 else 0.1
    draw = np.abs(draw) if name.endswith("running_var") else draw
    arrays[name] = np.asarray(around + spread * draw, np.float32)
  return arrays


def random_dinov2(name: str, batch_size: int, seed: int) -> Extractor:
  """Return DINOv2 with random weights."""
  random = np.random.default_rng(seed)
  size = dinov2.SIZES[name]
  draw = lambda shape: np.asarray(0.02 * random.standard_normal(shape), np.float32)
  arrays = {key: draw(shape) for key, shape in dinov2.shapes(size).items()}
  return dinov2_features.of_arrays(arrays, name, size, batch_size=batch_size)


RANDOM: Mapping[str, Callable[[int, int], Extractor]] = {
  **{name: functools.partial(random_inception, name) for name in TAPS},
  **{name: functools.partial(random_dinov2, name) for name in dinov2.SIZES},
}


def _torch(beside: str) -> ModuleType:
  if beside not in BESIDE:
    raise UserError("beside", beside, one_of(BESIDE, beside))
  try:
    import torch
  except ImportError:
    raise UserError("beside", beside, "torch to be installed: pip install -e '.[torch]'") from None
  return torch


def in_torch(torch: ModuleType, params: Any) -> Callable[[np.ndarray], np.ndarray]:
  """Return `images uint8 [B,299,299,3] -> pool [B, 2048]` in torch, with the parameters of `folded`."""
  tensor = lambda array: torch.from_numpy(np.ascontiguousarray(array))
  weights = {
    name: (tensor(given["weight"].transpose(3, 2, 0, 1)), tensor(given["bias"]))
    for name, given in params.items()
    if name != "fc"
  }
  functional = torch.nn.functional

  def unit(path: str, x: Any, unit: inception_units.Unit) -> Any:
    weight, bias = weights[path + unit.name]
    padding = tuple(around for around, _ in unit.padding)
    return functional.conv2d(x, weight, bias, unit.stride, padding).relu_()

  def chain(path: str, x: Any, links: inception_units.Chain) -> Any:
    for link in links:
      if isinstance(link, inception_units.Unit):
        x = unit(path, x, link)
      else:
        x = torch.cat([unit(path, x, each) for each in link], 1)
    return x

  def branches(x: Any, block: inception_units.Block) -> list[Any]:
    path = f"{block.name}."
    found = [chain(path, x, links) for links in block.branches]
    if block.pool == "reduce":
      return [*found, functional.max_pool2d(x, 3, 2)]
    average = lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    pooled = average(x) if block.pool == "average" else functional.max_pool2d(x, 3, 1, 1)
    return [*found, unit(path, pooled, inception_units.pooled_unit(block))]

  def forward(images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      x = (tensor(images.transpose(0, 3, 1, 2)).float() - 128) / 128
      for number, links in enumerate(inception_units.STEM):
        x = chain("", x, links)
        x = functional.max_pool2d(x, 3, 2) if number else x
      for block in inception_units.BLOCKS:
        x = torch.cat(branches(x, block), 1)
      return x.mean((2, 3)).numpy()

  return forward


COLUMNS: dict[str, Column] = {
  "features": lambda row: row["name"],
  "image": lambda row: "x".join(map(str, row["image_shape"])),
  "s/1,000 images": lambda row: f"{row['seconds_per_1000']:,.2f}",
  "torch's time / this": lambda row: text(row["ratio"], ".2f"),
}
