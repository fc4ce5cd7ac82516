"""LPIPS: against torch's VGG16 with the same weights, its derivatives, its file; never random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.errors import UserError
from cm_jax.networks.lpips import LPIPS, check, features, pool, save, shapes, unit
from cm_jax.training import loop
from tests import needs, tiny
from tests.compiling import quick_jit


def weights(dtype=np.float32, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights that keep the signal's size through 13 layers; heads are positive, as the published."""
  rng = np.random.default_rng(seed)
  drawn = {}
  for name, shape in shapes().items():
    scale = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.1
    drawn[name] = (
      np.abs(rng.normal(size=shape)) if name.startswith("lin") else scale * rng.normal(size=shape)
    ).astype(dtype)
  return drawn


def pair(size: int, dtype=np.float32, batch: int = 2):
  rng = np.random.default_rng(1)
  return (rng.uniform(-1, 1, (batch, size, size, 3)).astype(dtype) for _ in range(2))


def peer_files(folder, arrays):
  """The two published files' names and layouts, written by torch."""
  torch = needs.torch()
  trunk = {
    name: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a
    for name, a in arrays.items()
    if not name.startswith("lin")
  }
  trunk["classifier.0.bias"] = np.zeros(3, np.float32)  # what is not part of it is left out
  heads = {
    f"{name}.model.1.weight": a.reshape(1, -1, 1, 1) for name, a in arrays.items() if name.startswith("lin")
  }
  paths = folder / "vgg16-397923af.pth", folder / "vgg.pth"
  for path, state in zip(paths, (trunk, heads), strict=True):
    torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in state.items()}, path)
  return paths


def torch_lpips(trunk_path, heads_path, a, b, size, pooling="max"):
  """LPIPS of the paper in plain torch, from the two files; "average" as piq's `replace_pooling`."""
  torch = needs.torch()
  functional = torch.nn.functional
  trunk, heads = torch.load(trunk_path), torch.load(heads_path)
  shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

  def taps(x):
    x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    x, found = (x - shift) / scale, []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
      pool2d = functional.max_pool2d if pooling == "max" else functional.avg_pool2d
      x = pool2d(x, 2) if found else x
      for i in block:
        x = torch.relu(
          functional.conv2d(x, trunk[f"features.{i}.weight"], trunk[f"features.{i}.bias"], padding=1)
        )
      found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
    return found

  x = torch.from_numpy(a.transpose(0, 3, 1, 2)).requires_grad_()
  y = torch.from_numpy(b.transpose(0, 3, 1, 2))
  terms = [
    functional.conv2d((left - right) ** 2, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    for i, (left, right) in enumerate(zip(taps(x), taps(y), strict=True))
  ]
  distance = sum(terms)
  distance.sum().backward()
  return distance.detach().numpy(), x.grad.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_it_is_torchs_through_the_published_files_formats(tmp_path, pooling):
  trunk, heads = peer_files(tmp_path, weights())
  out = tmp_path / "lpips.safetensors"
  assert run(["convert", "--from=lpips", f"--input={trunk}", f"--heads={heads}", f"--out={out}"]) == 0
  distance, (a, b) = LPIPS(str(out), size=40, pooling=pooling), pair(16)
  params = distance.load()
  want, want_grad = torch_lpips(trunk, heads, a, b, 40, pooling)
  got = jax.jit(distance)(a, b, params)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  grad = jax.jit(jax.grad(lambda a: distance(a, b, params).sum()))(a)
  np.testing.assert_allclose(grad, want_grad, atol=1e-4 * np.abs(want_grad).max())


def test_the_first_tap_by_hand(x64):
  """Two 3x3 convolutions with zero padding and ReLU, as sums over shifted images."""
  params, x = weights(np.float64), next(pair(4, np.float64))
  for number in (0, 2):
    weight, padded = params[f"features.{number}.weight"], np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sum(padded[:, i : i + 4, j : j + 4] @ weight[i, j] for i in range(3) for j in range(3))
    x = np.maximum(x + params[f"features.{number}.bias"], 0)
  # four poolings need 16 pixels
  larger = jnp.asarray(np.pad(next(pair(4, np.float64)), ((0, 0), (0, 12), (0, 12), (0, 0))))
  first = np.asarray(quick_jit(lambda params, x: features(params, x)[0])(params, larger))
  np.testing.assert_allclose(first[:, :3, :3], x[:, :3, :3], rtol=1e-10)


def test_average_pooling_is_another_distance_and_a_third_is_refused(x64):
  """The second tap by hand: two convolutions of the averages of 2x2 pixels of the first (audit B1)."""
  params, x = weights(np.float64), jnp.asarray(next(pair(16, np.float64)))
  first, second = quick_jit(lambda params, x: features(params, x, "average")[:2])(params, x)
  want = np.asarray(first).reshape(2, 8, 2, 8, 2, 64).mean((2, 4))
  for number in (5, 7):
    weight, padded = params[f"features.{number}.weight"], np.pad(want, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = sum(padded[:, i : i + 8, j : j + 8] @ weight[i, j] for i in range(3) for j in range(3))
    want = np.maximum(want + params[f"features.{number}.bias"], 0)
  np.testing.assert_allclose(second, want, rtol=1e-10)
  with pytest.raises(UserError, match=r"^pooling = averge: expected 'average'"):
    LPIPS(pooling="averge")


@pytest.mark.slow
def test_derivatives_of_first_and_second_order_are_finite_differences(x64):
  distance, params, (a, b) = LPIPS(size=0), weights(np.float64), pair(16, np.float64, batch=1)
  v, h = np.random.default_rng(2).normal(size=a.shape), 1e-5
  d = jax.jit(lambda a: distance(a, b, params).sum())
  gradient = jax.jit(jax.grad(d))
  slope = float(jnp.vdot(gradient(a), v))
  assert slope == pytest.approx(float(d(a + h * v) - d(a - h * v)) / (2 * h), rel=1e-4)
  assert slope == pytest.approx(float(jax.jit(lambda a: jax.jvp(d, (a,), (v,))[1])(a)), rel=1e-9)
  hvp = jax.jit(lambda a: jax.jvp(gradient, (a,), (v,))[1])(a)
  np.testing.assert_allclose(
    hvp, (gradient(a + h * v) - gradient(a - h * v)) / (2 * h), atol=1e-3 * float(jnp.abs(hvp).max())
  )
  reverse = jax.jit(jax.grad(lambda a: jax.jvp(d, (a,), (v,))[1]))(a)
  np.testing.assert_allclose(reverse, hvp, atol=1e-8 * float(jnp.abs(hvp).max()))


@pytest.mark.slow
def test_equal_images_are_at_distance_zero_with_gradient_zero():
  distance, params, (a, _) = LPIPS(size=0), weights(), pair(16)
  value, grad = jax.jit(jax.value_and_grad(lambda a: distance(a, jax.lax.stop_gradient(a), params).sum()))(a)
  # XLA may compute the two sides differently
  assert abs(float(value)) < 1e-12 and float(jnp.abs(grad).max()) < 1e-9
  black = jnp.zeros((1, 2, 2, 4))
  assert bool(jnp.isfinite(jax.grad(lambda x: unit(x).sum())(black)).all())


@pytest.mark.slow
def test_small_images_are_enlarged_large_ones_left_and_grey_ones_repeated():
  params, (a, b) = weights(), pair(16)
  enlarge = lambda x: jax.image.resize(x, (2, 32, 32, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(
    LPIPS(size=32)(a, b, params), LPIPS(size=0)(enlarge(a), enlarge(b), params), rtol=1e-4
  )
  np.testing.assert_allclose(LPIPS(size=16)(a, b, params), LPIPS(size=0)(a, b, params), rtol=1e-6)
  grey_a, grey_b = a[..., :1], b[..., :1]
  repeat = lambda x: np.repeat(x, 3, axis=3)
  np.testing.assert_allclose(
    LPIPS(size=0)(grey_a, grey_b, params), LPIPS(size=0)(repeat(grey_a), repeat(grey_b), params), rtol=1e-6
  )
  with pytest.raises(ValueError, match="1 or 3 channels"):
    LPIPS(size=0)(a[..., :2], b[..., :2], params)
  assert pool(jnp.zeros((1, 5, 7, 2))).shape == (1, 2, 3, 2)


def test_without_its_weights_it_says_how_to_get_them(tmp_path):
  with pytest.raises(
    UserError, match="^weights = : expected a file: .cm_jax convert. makes it from LPIPS' published"
  ):
    LPIPS().load()
  with pytest.raises(UserError, match=r"^weights = .*: expected a file that exists"):
    LPIPS(str(tmp_path / "none.safetensors")).load()
  (tmp_path / "text.safetensors").write_text("no")
  with pytest.raises(UserError, match="^weights = .*: expected a readable safetensors file"):
    LPIPS(str(tmp_path / "text.safetensors")).load()
  short = {name: array for name, array in weights().items() if name != "lin3"}
  safetensors.numpy.save_file(short, tmp_path / "short.safetensors")
  with pytest.raises(UserError, match=r"short\.safetensors: lin3 = missing: expected shape \(512,\)"):
    LPIPS(str(tmp_path / "short.safetensors")).load()
  with pytest.raises(ValueError, match="needs its weights"):
    LPIPS()(*pair(16))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"lin0": np.zeros(3, np.float32)}, r"lin0 = \(3,\): expected shape \(64,\)"),
    ({"more": np.zeros(3, np.float32)}, r"more = \(3,\): expected no such array"),
    ({"lin1": np.full(128, np.nan, np.float32)}, "lin1 = not finite"),
  ],
)
def test_other_weights_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    check({**weights(), **change}, "file")


def test_bad_input_of_the_conversion_is_one_line(tmp_path, capsys):
  (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 not a zip")
  out = tmp_path / "lpips.safetensors"
  for arguments, expected in (
    (["--input=none.pth", "--heads=none.pth", f"--out={out}"], "--input = none.pth"),
    (
      [f"--input={tmp_path / 'a.pth'}", "--heads=none.pth", f"--out={out}"],
      "a.pth: expected a whole state dict",
    ),
    (["--input=x", "--heads=y", "--out=folder"], "--out = folder: expected the file to write"),
  ):
    assert run(["convert", "--from=lpips", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
  assert not out.exists()


@pytest.mark.slow
def test_a_run_trains_with_it_and_is_refused_without_its_weights(tmp_path):
  config = tiny.config({**tiny.CT, "distance": {"name": "lpips", "size": 16}}, num_steps=2)
  with pytest.raises(UserError, match=r"config\.objective\.distance\.weights"):
    build(config)
  config.objective.distance.weights = str(tmp_path / "lpips.safetensors")
  save(config.objective.distance.weights, weights(), {"licence": "none: random"})
  before = build(config)
  state = loop.train(before, tmp_path / "run", progress=False)
  assert set(before.distance_params) == set(shapes()) and int(state.step) == 2
  assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
