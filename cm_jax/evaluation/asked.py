"""What is to be measured, and by what: checked against each other before any work starts."""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from etils import epath

from cm_jax.data.sources import Framing
from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.collecting import MOMENTS
from cm_jax.evaluation.conventions import USUAL, Convention, convention
from cm_jax.evaluation.features import Extractor, load_features, with_resize
from cm_jax.evaluation.features.base import check_also
from cm_jax.evaluation.metrics import METRICS, ON_REQUEST
from cm_jax.evaluation.metrics.base import Metric
from cm_jax.evaluation.real import RealData, Sources, check_fits, check_images, check_shape
from cm_jax.evaluation.references import Reference, open_reference

UNNAMED = ("classifier", "digits")  # features that are called by the data they measure
# Of what a network gives beside features, who needs it.
_GIVEN = {"logits": "logits", "spatial": "spatial", "spatial_moments": "spatial"}
# What a record says of a metric, where it is one of its fields.
SETTINGS = ("splits", "subsets", "neighbours")


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
  """What samples are measured by.

  Attributes:
    metrics: By their names in `METRICS`.
    extractor: Whose features they are in.
    name: Of the convention.
    convention: It, with what was changed.
    real: Real images.
  """

  metrics: Mapping[str, Metric]
  extractor: Extractor
  name: str
  convention: Convention
  real: RealData

  @property
  def num(self) -> int:
    """Samples."""
    return self.convention.num

  @property
  def needs(self) -> frozenset[str]:
    """What is kept of samples."""
    return frozenset(need for metric in self.metrics.values() for need in metric.needs)

  @property
  def fields(self) -> dict[str, Any]:
    """What every record says of it."""
    return {
      "reference": self.real.reference.name,
      "reference_hash": self.real.reference.hash,
      "features": self.extractor.name,
      "features_hash": self.extractor.hash,
      "convention": self.name,
      "resize": self.extractor.resize,
    }

  @property
  def label(self) -> str:
    """What "{data}" in the names of records stands for: published features, else the data."""
    return self.extractor.name if self.extractor.name not in UNNAMED else self.real.reference.data

  def recorded(self, metric: Metric) -> dict[str, str]:
    """Return what records call the values of a metric, by their names in reports."""
    return {key: template.format(data=self.label) for key, template in metric.records.items()}

  @property
  def baselines(self) -> dict[str, Metric]:
    """Metrics that say something of real images too, by what records of that are called."""
    if self.name != "own":
      return {}
    known = self.real.needs
    with_one = [m for m in self.metrics.values() if m.baseline and known.issuperset(m.needs_baseline)]
    return {f"{next(iter(self.recorded(metric).values()))}_{metric.baseline}": metric for metric in with_one}

  def told(self, quantiser: str) -> list[str]:
    """Return how samples are measured, a line each: all that has to be the same for the same number.

    Args:
      quantiser: How they became uint8, as records call it.
    """
    extractor, reference, used = self.extractor, self.real.reference, self.convention
    own = {key: value for metric in self.metrics.values() for key, value in choices(metric).items()}
    rest = "".join(f", {key.replace('_', ' ')} {value}" for key, value in own.items())
    given = "" if reference.hash is None else f", sha256 {reference.hash[:16]}"
    return [
      f"convention {self.name}: samples {quantiser}, n {used.num:,}{rest}",
      f"features {extractor.name}, sha256 {extractor.hash[:16]}, resize {extractor.resize}, products highest",
      f"reference {reference.name} ({self.real.form}){given}",
    ]


def choices(metric: Metric) -> dict[str, Any]:
  """Return what a metric has of the fields of a convention.

  >>> choices(METRICS["prdc"]), choices(METRICS["fid"])
  ({'neighbours': 3}, {})
  """
  fields: tuple[dataclasses.Field, ...] = ()
  if dataclasses.is_dataclass(metric):
    fields = dataclasses.fields(metric)
  known = {field.name for field in dataclasses.fields(Convention)}
  return {field.name: vars(metric)[field.name] for field in fields if field.name in known}


def settings(metric: Metric) -> dict[str, Any]:
  """Return the fields of a record that say of a metric's own choices: all of them, and some by themselves."""
  chosen = choices(metric)
  alone = {name: value for name, value in chosen.items() if name in SETTINGS}
  return {**alone, "choices": chosen} if chosen else {}


def extractor_of(features: Extractor | epath.PathLike, weights: epath.PathLike | None = None) -> Extractor:
  """Return what images are measured by, loaded if it is named."""
  return load_features(features, weights) if isinstance(features, (str, os.PathLike)) else features


def measured_by(
  features: Extractor | epath.PathLike, name: str | None, **changed: Any
) -> tuple[Extractor, str, Convention]:
  """Return what images are measured by and the convention, with the fields that are not None changed; by
  default EDM's for published features and one's own for others.

  Raises:
    UserError: An unknown network, convention or field of it.
  """
  extractor = extractor_of(features)
  name = name or ("edm" if extractor.name in USUAL else "own")
  used = convention(name, **changed)
  return with_resize(extractor, used.resize), name, used


def chosen_metrics(
  names: Sequence[str] | None, extractor: Extractor, used: Convention, can: Collection[str] = ()
) -> dict[str, Metric]:
  """Return metrics by name, with the convention's choices.

  Args:
    names: Keys of `METRICS`; None for those usual in the features.
    extractor: Gives the features.
    used: The convention.
    can: What there is of real images beside the reference, "train" or nothing.

  Raises:
    UserError: An unknown name; or a metric that needs what the network does not give, or images that are not
      known.
  """
  usual = names is None
  if names is None:
    names = USUAL.get(extractor.name) or [name for name in METRICS if name not in ON_REQUEST]
  found = {}
  for name in names:
    if name not in METRICS:
      raise UserError("metrics", name, one_of(METRICS, name))
    metric = METRICS[name]
    if metric.only and extractor.name not in metric.only:
      expected = f"{' or '.join(metric.only)}: {name} in other features is another number (fd, FD-NAME)"
      raise UserError("features", extractor.name, expected)
    lacks = [_GIVEN[need] for need in metric.needs if _GIVEN.get(need, "") not in ("", *extractor.gives)]
    without_train = "train" in metric.needs_real and "train" not in can
    if usual and (lacks or without_train):
      continue
    check_also(extractor, lacks)
    if without_train:
      raise UserError("train_source", "", f"the images of the training, which {name} compares with")
    found[name] = _adjusted(metric, used)
  return found


def _adjusted(metric: Metric, used: Convention) -> Metric:
  """Return a metric with the choices of a convention that it has."""
  theirs = {name: vars(used)[name] for name in choices(metric)}
  return cast(Metric, dataclasses.replace(cast(Any, metric), **theirs)) if theirs else metric


def check_count(num: int, extractor: Extractor, metrics: Mapping[str, Metric], name: str, few: bool) -> None:
  """Check that there are samples enough for a covariance.

  Raises:
    UserError: Fewer than 2; or no more than features, in a convention of others, unless `few` is set.
  """
  if num < 2:
    raise UserError("num", num, "at least 2")
  singular = num <= extractor.size and any(need in MOMENTS for m in metrics.values() for need in m.needs)
  if singular and not few and name != "own":
    expected = f"more than the {extractor.size} features of {extractor.name}: their covariance is singular"
    raise UserError("num", num, f"{expected} (few, to measure all the same)")


def ask(
  shape: tuple[int, ...],
  sources: Sources,
  framing: Framing,
  extractor: Extractor,
  metrics: Sequence[str] | None,
  name: str,
  used: Convention,
  few: bool = False,
  floors: bool = True,
  progress: bool = True,
) -> Asked:
  """Open what images of a shape are compared with, and check all of it against each other.

  Args:
    shape: (H, W, C).
    sources: Where real images come from.
    framing: How these become squares.
    extractor: What measures images.
    metrics: Names of `METRICS`; None for the usual ones.
    name, used: The convention.
    few: Measure although there are no more samples than features.
    floors: Measure real images by themselves too, where that says something.
    progress: Show a bar while the reference is measured.

  Raises:
    UserError: Names the argument that does not fit.
  """
  check_fits(shape, extractor)
  can = () if sources.train is None else ("train",)
  chosen = chosen_metrics(metrics, extractor, used, can)
  check_count(used.num, extractor, chosen, name, few)
  reference = open_reference(sources.reference, extractor.name, framing)
  if reference.images is not None:
    check_shape("reference", sources.reference, reference.images.shape, shape)
  if reference.statistics is not None:
    given = {"features_hash": extractor.hash, "resize": extractor.resize, "image_shape": shape}
    reference.statistics.check("reference", sources.reference, extractor, {**given, "convention": name})
  check_images(shape, extractor, framing, train_source=sources.train, test_source=sources.held_out)
  needs = {need for metric in chosen.values() for need in metric.needs_real} - {"train"}
  check_known(reference, chosen)
  if floors and name == "own" and reference.images is not None:
    needs |= {need for metric in chosen.values() for need in metric.needs_baseline}
  kept = frozenset(needs)
  real = RealData(reference, sources.train, sources.held_out, framing, extractor, kept, progress=progress)
  return Asked(chosen, extractor, name, used, real)


def check_known(reference: Reference, metrics: Mapping[str, Metric]) -> None:
  """Check that a reference has what metrics need of it.

  Raises:
    UserError: Names the metric, of a reference that is statistics only.
  """
  if reference.images is not None or reference.statistics is None:
    return
  known = {"moments", "train"} | ({"spatial_moments"} if reference.statistics.spatial_moments else set())
  for name, metric in metrics.items():
    lacks = set(metric.needs_real) - known
    if lacks:
      expected = f"images, or metrics without {name}: the file has statistics only, no {sorted(lacks)[0]}"
      raise UserError("reference", reference.name, expected)
