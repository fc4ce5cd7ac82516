"""What is measured: a stock network, a run's or a weights folder's model, or what a config trains."""

import dataclasses
from typing import Any

import jax
import ml_collections

from cm_jax.assembly import assemble, build_network, load_model, model_of
from cm_jax.benchmark.cases import BASE, CASES, WORKLOADS, Workload, config_of
from cm_jax.benchmark.plan.setting import images_of
from cm_jax.config import plain_json
from cm_jax.models import Model


@dataclasses.dataclass(frozen=True)
class Subject:
  """A network that is sampled and trained.

  Attributes:
    name: What rows call it.
    model: Its weights, random where nothing is trained.
    config: What trains it, but for the batch size: a train step starts from random weights.
    batch_size: By default.
  """

  name: str
  model: Model
  config: ml_collections.ConfigDict
  batch_size: int

  @property
  def workload(self) -> Workload:
    """The network and its images, to train by any objective."""
    return Workload(plain_json(self.config.network), self.model.image_shape, self.batch_size)

  def with_network(self, **fields: Any) -> "Subject":
    """Return the same weights in a network with other fields, such as dtype or kernels."""
    model = self.model
    network = {**plain_json(dict(model.network)), **fields}
    preconditioned, _ = build_network(
      network, dict(model.precond), model.noise, model.image_shape, model.num_classes, model.matmul_precision
    )
    config = ml_collections.ConfigDict(self.config)
    with config.ignore_type():
      config.network = {**plain_json(self.config.network), **fields}
    model = dataclasses.replace(model, network=network, preconditioned=preconditioned)
    return dataclasses.replace(self, model=model, config=config)


def of_network(name: str, seed: int = 0) -> Subject:
  """Return a stock network (`WORKLOADS`) with random weights, trained by plain denoising."""
  workload = WORKLOADS[name]
  config = config_of(CASES[BASE], workload, workload.batch_size)
  return _random(name, config, workload.image_shape, 0, seed)


def of_config(config: ml_collections.ConfigDict, name: str, seed: int = 0) -> Subject:
  """Return what a config trains, with random weights; no data is opened.

  Raises:
    UserError: A config that does not fit together, or the shape of its images is not known.
  """
  shape, classes, _ = images_of(config)
  return _random(name, config, shape, classes if config.data.conditional else 0, seed)


def of_model(path: str, step: int | str = -1, average: str = "ema", kind: str | None = None) -> Subject:
  """Return a run's or a weights folder's model; its train step is plain denoising.

  Raises:
    UserError: Nothing to load there.
  """
  model = load_model(path, step, average, kind=kind)
  workload = Workload(plain_json(dict(model.network)), model.image_shape, 64)
  config = config_of(CASES[BASE], workload, workload.batch_size)
  config.data.image_shape, config.data.num_classes = model.image_shape, model.num_classes
  return Subject(path, model, config, workload.batch_size)


def _random(
  name: str, config: ml_collections.ConfigDict, shape: tuple[int, int, int], classes: int, seed: int
) -> Subject:
  config = ml_collections.ConfigDict(config)
  config.data.image_shape, config.data.num_classes = shape, classes
  method = assemble(config, shape, classes)
  params = jax.jit(method.init)(jax.random.key(seed))
  return Subject(name, model_of(method.config.to_dict(), params), config, config.batch_size)
