"""A batch that a CPU samples in parts: the same images, numbered and labelled as before."""

import jax
import numpy as np
import pytest

from cm_jax.networks import kernels
from cm_jax.sampling import generate
from cm_jax.sampling.multistep import Multistep
from tests.compiling import quick_jit
from tests.gaussian import GaussianPreconditioned
from tests.sampling.models import model_of


@pytest.mark.parametrize(("count", "parts"), [(4, 1), (8, 2), (12, 3), (10, 5), (7, 1)])
def test_as_few_parts_as_fit(count, parts, monkeypatch):
  monkeypatch.setattr(generate, "POSITIONS", 4 * 16)
  assert generate._parts(count, (4, 4, 1)) == 1  # several devices
  with kernels.using("cpu"):
    assert generate._parts(count, (4, 4, 1)) == parts
    assert generate._parts(count, (64, 64, 1)) == count


def test_images_do_not_depend_on_the_parts(monkeypatch):
  model = model_of(GaussianPreconditioned(), num_classes=3)
  images = []
  for positions in (4, 10**6):
    monkeypatch.setattr(generate, "POSITIONS", positions * model.image_shape[0] * model.image_shape[1])
    generator = generate.make_generator(model, Multistep(model.noise, (80.0, 0.7)))
    label = generate.balanced_labels(np.arange(8), model.num_classes)
    with kernels.using("cpu"):
      images.append(quick_jit(generator)(model.params, np.uint32(3), np.arange(8, dtype=np.int32), label))
  apart = np.abs(np.asarray(images[0], np.int32) - np.asarray(images[1], np.int32))
  assert apart.max() <= 1 and len(np.unique(np.asarray(images[1]), axis=0)) == 8


def test_the_program_has_one_loop_over_parts(monkeypatch):
  model = model_of(GaussianPreconditioned(), num_classes=3)
  monkeypatch.setattr(generate, "POSITIONS", 2 * model.image_shape[0] * model.image_shape[1])
  generator = generate.make_generator(model, Multistep(model.noise, (80.0,)))
  label = generate.balanced_labels(np.arange(8), model.num_classes)
  arguments = model.params, np.uint32(0), np.arange(8, dtype=np.int32), label
  with kernels.using("cpu"):
    assert "length=4" in str(jax.make_jaxpr(generator)(*arguments))
