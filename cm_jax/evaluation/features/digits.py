"""The classifier of the digits that come with scikit-learn: trained on the spot, once a machine."""

import dataclasses

import jax
from etils import epath

from cm_jax.data.sources import images, labels, open_source
from cm_jax.evaluation import hosts
from cm_jax.evaluation.features.classifier import (
  ClassifierFeatures,
  load_classifier,
  save_features,
  train_features,
)
from cm_jax.storage.downloads import NoCache, cache_folder, locked


def load_digits(weights: epath.PathLike | None) -> ClassifierFeatures:
  """Return the classifier of the digits with seed 0, from a folder, else from the cache, else trained (10 s).

  One process of a machine trains it, and a job measures by that of its first process: trained in a job of
  several, or elsewhere, it comes out a little otherwise.

  Raises:
    UserError: The folder holds no such classifier.
  """
  if weights is not None:
    return load_classifier(weights)
  jax.devices()  # all processes of a job start theirs together: none may wait for the lock meanwhile
  mine = _kept()
  params, scale, accuracy = hosts.as_main((mine.params, mine.scale, mine.accuracy))
  return dataclasses.replace(mine, params=params, scale=float(scale), accuracy=float(accuracy))


def _kept() -> ClassifierFeatures:
  try:
    kept = cache_folder() / "digits-features"
  except NoCache:
    return _trained()
  is_there = (kept / "features.json").exists
  if not is_there():  # a cache that only may be read needs no lock
    with locked(kept):
      if not is_there():
        save_features(kept, _trained())
  return load_classifier(kept)


def _trained() -> ClassifierFeatures:
  source = open_source("digits")
  return train_features(images(source), labels(source), name="digits")
