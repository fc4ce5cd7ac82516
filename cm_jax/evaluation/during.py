"""A cheap metric of a run's samples while it trains, always of the same noise, so that curves compare."""

from collections.abc import Generator

import jax
import numpy as np

from cm_jax.data.companions import companions
from cm_jax.data.sources import Framing
from cm_jax.errors import UserError, renamed
from cm_jax.evaluation import hosts
from cm_jax.evaluation.asked import ask, extractor_of
from cm_jax.evaluation.collecting import collect
from cm_jax.evaluation.conventions import convention
from cm_jax.evaluation.real import Sources
from cm_jax.evaluation.subjects import check_model
from cm_jax.models import Model
from cm_jax.sampling.choose import choose_samplers
from cm_jax.sampling.generate import generate, make_generator
from cm_jax.types import Params, Sampler


def sampler_of(model: Model, own: Sampler, nfe: int) -> Sampler:
  """Return how a run is sampled with a number of network evaluations: by itself for 0, as its kind else.

  Raises:
    UserError: No noise levels are known for it, or Heun's method has another number.
  """
  if not nfe:
    return own
  if model.kind != "diffusion":
    return choose_samplers(model, nfe=nfe)[0]
  if nfe % 2 == 0:
    raise UserError("nfe", nfe, f"an odd number for Heun's method, such as {nfe - 1}")
  return choose_samplers(model, num_steps=[(nfe + 1) // 2])[0]


class During:
  """Measures the samples of weights: `during(params) -> {name: value}`, the names those of reports.

  Every process of a job calls it at the same time. Seed and noise are fixed, the reference is measured once.

  Args:
    model: The run's, without its weights.
    sampler: How it is sampled.
    source: Of the data it trains on: samples are compared with what goes with it (`companions`).
    framing: How its images become squares.
    metric: A key of `METRICS`.
    features: Their name or folder.
    num: Samples.
    seed: Of them.
    batch_size: Images at a time, over all devices of the mesh.
    mesh: Devices of all processes.

  Raises:
    UserError: Names the argument that does not fit.
  """

  def __init__(
    self,
    model: Model,
    sampler: Sampler,
    source: str,
    framing: Framing,
    metric: str,
    features: str,
    num: int,
    seed: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
  ):
    check_model(model)
    self._extractor = extractor_of(features)
    sources = Sources(companions(source).reference, source, None)
    used = convention("own", num=num)
    with renamed("metrics", "metric"):
      asked = ask(
        model.image_shape,
        sources,
        framing,
        self._extractor,
        [metric],
        "own",
        used,
        few=True,
        floors=False,
        progress=False,
      )
    self._metric, self._real = asked.metrics[metric], asked.real
    self._generator, self._classes = make_generator(model, sampler), model.num_classes
    self._num, self._seed, self._batch, self._mesh = num, seed, batch_size, mesh

  def __call__(self, params: Params) -> dict[str, float]:
    """Return the metric's values of samples of `params`."""
    drawn = generate(
      self._generator, params, range(self._num), self._classes, self._batch, self._mesh, seed=self._seed
    )
    images = np.concatenate(list(drawn))  # on every host: the devices of all of them drew each batch

    def batches(start: int, stop: int) -> Generator[np.ndarray, None, None]:
      yield images[start:stop]

    needs = self._metric.needs
    mine = collect(batches, hosts.part(self._num), self._extractor, needs, progress=False)
    found = mine.whole(self._extractor, needs, images.shape[1:])
    return {name: float(value) for name, value in self._metric.values(found, self._real).items()}
