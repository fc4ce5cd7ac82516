"""Likelihood on Gaussian data, where it is known; the log-volume of uint8; the command on a tiny model."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.errors import UserError
from cm_jax.sampling.likelihood import LEVELS, Likelihood, bits_per_dim, dequantize
from cm_jax.training import loop
from cm_jax.types import NoiseRange
from tests import tiny
from tests.gaussian import Gaussian

NOISE = NoiseRange(sigma_data=0.5)
DATA = Gaussian(mean=0.2, std=0.5)


def analytic(x) -> np.ndarray:
  """log p of N(mean, (std^2 + sigma_min^2) I) in nats."""
  variance = DATA.std**2 + NOISE.sigma_min**2
  flat = np.asarray(x, np.float64).reshape(len(x), -1)
  return -0.5 * ((flat - DATA.mean) ** 2).sum(1) / variance - 0.5 * flat.shape[1] * math.log(
    2 * math.pi * variance
  )


@pytest.mark.parametrize("trace", [pytest.param("hutchinson", marks=pytest.mark.slow), "exact"])
@pytest.mark.parametrize(
  "double", [pytest.param(False, marks=pytest.mark.slow), True], ids=["float32", "float64"]
)
def test_bits_per_dimension_of_gaussian_data(trace, double):
  """The Jacobian is a multiple of the identity: Hutchinson is exact with one probe."""
  with jax.enable_x64(double):
    drawn = np.random.default_rng(0).normal(size=(5, 4, 4, 1))
    x = (DATA.mean + DATA.std * drawn).astype(jnp.result_type(float))
    log_p, nfe = map(np.asarray, _run(x, trace))
    assert float(np.abs(bits_per_dim(log_p, 16) - bits_per_dim(analytic(x), 16)).max()) < 0.01
    assert 10 < int(nfe) < 2000


def _run(x, trace, **fields):
  likelihood = Likelihood(NOISE, trace=trace, **fields)
  return jax.jit(lambda x, key: likelihood(DATA.denoise, x, key))(x, jax.random.key(1))


@pytest.mark.slow
def test_a_tighter_tolerance_is_nearer(x64):
  x = DATA.mean + DATA.std * jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
  prior_off = 0.05  # what the prior's approximation, a mean of 0, leaves in nats
  errors = [
    float(np.abs(_run(x, "exact", rtol=tol, atol=tol)[0] - analytic(x)).max()) for tol in (1e-2, 1e-4, 1e-7)
  ]
  assert errors[0] > errors[1] and errors[2] < prior_off, errors


@pytest.mark.slow
def test_hutchinsons_estimate_is_unbiased(x64):
  """A denoiser whose pixels see each other: one probe is off, the mean over many is the exact trace."""
  mix = np.random.default_rng(0).normal(size=(4, 4)) * 0.3

  def denoiser(x, sigma):
    return (
      DATA.denoise(x, sigma)
      + (x.reshape(len(x), 4) @ mix).reshape(x.shape) * (0.1 / (1 + sigma))[:, None, None, None]
    )

  x = jax.random.normal(jax.random.key(0), (1, 2, 2, 1))
  value = lambda trace, probes, seed: jax.jit(
    lambda x, key: Likelihood(NOISE, trace=trace, probes=probes)(denoiser, x, key)[0]
  )(x, jax.random.key(seed))
  exact = float(value("exact", 1, 0)[0])
  one, many = (
    abs(float(value("hutchinson", 1, 1)[0]) - exact),
    abs(float(value("hutchinson", 512, 1)[0]) - exact),
  )
  assert one > 0.02 and many < 0.1 * one + 0.01, (one, many)


def test_the_log_volume_of_a_uint8_cell():
  """A density that is uniform over the 256 cells has exactly 8 bits per dimension."""
  dims, width = 12, 256 / LEVELS
  log_p = np.full(3, -dims * math.log(width))
  np.testing.assert_allclose(bits_per_dim(log_p, dims), 8.0)
  image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1)), jnp.uint8)
  x = np.asarray(dequantize(image, jax.random.key(0)))
  np.testing.assert_array_equal(np.round((x + 1) * LEVELS), np.asarray(image))
  offset = (x + 1) * LEVELS - np.asarray(image)
  assert abs(offset.mean()) < 0.05 and abs(offset.std() - 12**-0.5) < 0.02


@pytest.mark.slow
def test_the_command_records_what_it_measures(tmp_path, capsys):
  loop.train(build(tiny.config(num_steps=3)), tmp_path / "run", progress=False)
  arguments = [
    "likelihood",
    f"--workdir={tmp_path / 'run'}",
    "--num=6",
    "--batch_size=6",
    "--rtol=1e-2",
    "--atol=1e-2",
  ]
  assert run(arguments) == 0
  assert run([*arguments, "--samples=3"]) == 0
  first, weighted = (
    json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
  )
  assert first["metric"] == "bits_per_dim" and first["n"] == 6 and first["reference"] == "digits:test"
  assert weighted["sampler"]["samples"] == 3 and weighted["value"] < first["value"] + 0.2
  capsys.readouterr()
  loop.train(build(tiny.config(tiny.CT, num_steps=3)), tmp_path / "ct", progress=False)
  for bad, expected in (
    ([f"--workdir={tmp_path / 'ct'}"], "expected a diffusion model"),
    ([f"--workdir={tmp_path / 'run'}", "--trace=some"], "--trace = some"),
    ([f"--workdir={tmp_path / 'run'}", "--source=nothing"], "nothing"),
  ):
    assert run(["likelihood", *bad]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error


def test_bad_fields_are_refused():
  for fields, message in (
    ({"probes": 0}, "^probes = 0"),
    ({"rtol": 0.0}, "^rtol = 0"),
    ({"trace": "some"}, "^trace = some"),
  ):
    with pytest.raises(UserError, match=message):
      Likelihood(NOISE, **fields)
