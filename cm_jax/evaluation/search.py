"""Find the noise levels of few steps that make the Frechet distance smallest, and store them."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from cm_jax.data.sources import images, validate_source
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.pixels import quantize
from cm_jax.errors import renamed
from cm_jax.evaluation.features import Extractor, load_features
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.metrics.frechet import distance_of_moments
from cm_jax.evaluation.moments import Moments
from cm_jax.evaluation.real import check_images, framing_of, open_like_own, own_reference
from cm_jax.evaluation.references import data_name
from cm_jax.models import Model
from cm_jax.notices import progress_bar
from cm_jax.sampling.choose import listed, own_multistep
from cm_jax.sampling.generate import generate_all, local_mesh
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.step_search import Evaluation, Metric, StepSearch
from cm_jax.storage import pictures, style
from cm_jax.storage.run import RunFolder, store_sigmas
from cm_jax.types import Array, Condition, Params

ORDINALS = (
  "first",
  "second",
  "third",
  "fourth",
  "fifth",
  "sixth",
  "seventh",
  "eighth",
)  # levels, in pictures


def search(
  model: Model,
  nfe: int,
  features: Extractor | epath.PathLike,
  reference: str | None = None,
  method: str = "golden",
  num: int = 5000,
  rounds: int = 1,
  seed: int = 0,
  batch_size: int = 250,
  mesh: jax.sharding.Mesh | None = None,
  out: epath.PathLike | None = None,
  progress: bool = True,
  clip: bool | None = None,
  renoise: str | None = None,
) -> tuple[Evaluation, list[Evaluation]]:
  """Search for the noise levels of `nfe` network evaluations; every candidate has the same noise.

  Args:
    model: The consistency model.
    nfe: Number of noise levels, 2 to 8; the first is sigma_max.
    features: What measures: of `train_features`, or the folder where they are stored.
    reference: Source of the images that samples are compared with; by default what goes with the model's own
      data (`companions`).
    method: "golden" scans first, with fewer samples, and then narrows down; "ternary" is the paper's search.
    num: Samples per candidate.
    rounds: How often each level is optimised.
    seed: Of the samples.
    batch_size: Images at a time.
    mesh: Devices of this host to sample on; by default all.
    out: Run or weights folder of the model: the levels are stored where sampling finds them, the curve beside
      them.
    progress: Show a bar.
    clip, renoise: How the candidates are sampled; by default as the model's own sampling.

  Returns:
    The best candidate, and every one that was tried.

  Raises:
    UserError: Names the argument: a number of levels or a method that there is not, a source that is not
      there or has to be given, features that cannot be read.
  """
  steps = StepSearch(model.noise, nfe, method, num, rounds)
  source = reference or own_reference(model)
  with renamed("source", "reference"):
    validate_source(source)
  measure = load_features(features) if isinstance(features, (str, os.PathLike)) else features
  check_images(model.image_shape, measure, framing_of(model), reference=source)
  given = {key: value for key, value in (("clip", clip), ("renoise", renoise)) if value is not None}
  sampler = Multistep(model.noise, steps.initial(), **{**own_multistep(model), **given})
  metric = frechet_metric(model, sampler, measure, source, seed, batch_size, mesh)
  is_main = jax.process_index() == 0
  with progress_bar(desc=f"{nfe} NFE", unit=" candidates", disable=not (progress and is_main)) as bar:

    def show(evaluation: Evaluation) -> None:
      bar.update()
      bar.set_postfix(sigmas=listed(evaluation.sigmas), fd=f"{evaluation.value:.4g}")

    best, history = steps(metric, show)
  if out is not None and is_main:
    plot(history, best, RunFolder.at(out).search(nfe))
    name = METRICS["fd"].records["fd"].format(data=data_name(source))
    how = {"clip": sampler.clip, "renoise": sampler.renoise}
    about = {"metric": name, "value": best.value, "n": best.n, "seed": seed, "method": method, **how}
    store_sigmas(out, nfe, best.sigmas, about)
  return best, history


def frechet_metric(
  model: Model,
  sampler: Multistep,
  features: Extractor,
  reference: str,
  seed: int,
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
) -> Metric:
  """Return (sigmas, n) -> Frechet distance of n samples, of the same noise; one program for all levels.

  `sampler` says how they are sampled; its own levels are not used.
  """
  moments = Moments.of(features(images(open_like_own(model, reference))).features)
  mesh = mesh or local_mesh()

  @jax.jit
  def draw(params: Params, seed: Any, indices: Array, label: Array | None, sigmas: Array) -> Array:
    noise = per_sample_noise(jax.random.key(seed), indices)
    f = model.preconditioned(params, Condition(label))
    return quantize(sampler.at(sigmas, f, noise, (len(indices), *model.image_shape)))

  def metric(sigmas: tuple[float, ...], n: int) -> float:
    levels = jnp.asarray(sigmas, jnp.float32)
    generator = lambda *arguments: draw(*arguments, levels)
    samples = generate_all(generator, model, n, batch_size, mesh, seed)
    return distance_of_moments(Moments.of(features(samples).features), moments)

  return metric


def plot(history: Sequence[Evaluation], best: Evaluation, path: epath.PathLike) -> None:
  """Draw the metric against every level that was varied."""
  with pictures.figure(path, 4 * (len(best.sigmas) - 1), style.INCHES) as figure:
    panels = figure.subplots(1, len(best.sigmas) - 1, squeeze=False)[0]
    for k, panel in enumerate(panels, start=1):
      for n in sorted({evaluation.n for evaluation in history}):
        chosen = [evaluation for evaluation in history if evaluation.n == n]
        label = f"{n:,} samples"
        panel.plot([e.sigmas[k] for e in chosen], [e.value for e in chosen], ".", label=label)
      panel.axvline(best.sigmas[k], color=style.FAINT, linestyle=":")
      title = f"best: {best.sigmas[k]:.3g}, FD {best.value:.3g} of {best.n:,} samples"
      panel.set_title(title)
      pictures.log_axis(panel, "x", [evaluation.sigmas[k] for evaluation in history])
      pictures.log_axis(panel, "y", [evaluation.value for evaluation in history])
      panel.set(xlabel=f"{ORDINALS[k]} noise level", ylabel="FD (higher with fewer samples)")
      panel.legend()
