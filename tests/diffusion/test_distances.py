import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.distances import DISTANCES, L1, L2, PseudoHuber
from cm_jax.errors import UserError


def images(size: int = 8) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  return tuple(rng.normal(size=(3, size, size, 2)) for _ in range(2))


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Bilinear with half-pixel centres, edges clamped, no antialiasing; per axis, by its definition."""
  for axis in (1, 2):
    old = image.shape[axis]
    centre = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * image.ndim
    shape[axis] = size
    fraction = (centre - low).reshape(shape)
    image = (1 - fraction) * np.take(image, low, axis) + fraction * np.take(image, high, axis)
  return image


def test_values_against_numpy(x64):
  a, b = images()
  difference = (a - b).reshape(3, -1)
  np.testing.assert_allclose(L1()(a, b), np.abs(difference).mean(1), rtol=1e-13)
  np.testing.assert_allclose(L2()(a, b), (difference**2).mean(1), rtol=1e-13)
  for c in (0.0, 0.03, 2.0):
    np.testing.assert_allclose(PseudoHuber(c)(a, b), np.sqrt((difference**2).sum(1) + c**2) - c, rtol=1e-13)


@pytest.mark.parametrize("size", [4, 8, 20, 32, 64])
def test_l2_at_32_pixels_resizes_as_openai_does(x64, size):
  a, b = images(size)
  want = ((resize(a, 32) - resize(b, 32)).reshape(3, -1) ** 2).mean(1)
  np.testing.assert_allclose(L2(size=32)(a, b), want, rtol=1e-12)


@pytest.mark.parametrize("distance", [L1(), L2(), L2(size=32), PseudoHuber(0.0), PseudoHuber(0.03)], ids=repr)
def test_the_gradient_at_equal_images_is_zero(distance):
  a = jnp.asarray(images()[0], jnp.float32)
  value, grad = jax.value_and_grad(lambda a: distance(a, jax.lax.stop_gradient(a)).sum())(a)
  assert abs(float(value)) < 1e-8
  assert (grad == 0).all()


@pytest.mark.parametrize("c", [0.0, 0.03])
def test_the_gradient_of_pseudo_huber_for_some_equal_images(x64, c):
  a, b = images()
  b[1] = a[1]
  grad = jax.grad(lambda a: PseudoHuber(c)(a, jnp.asarray(b)).sum())(jnp.asarray(a))
  norm = np.sqrt(((a - b) ** 2).sum((1, 2, 3), keepdims=True) + c**2)
  np.testing.assert_allclose(grad, (a - b) / np.where(norm > 0, norm, 1), rtol=1e-12)


def test_a_negative_c_is_refused():
  with pytest.raises(UserError, match=r"^c = -0\.1"):
    PseudoHuber(-0.1)


@pytest.mark.parametrize("distance", [*(make() for make in DISTANCES.values()), PseudoHuber(0.0)], ids=repr)
def test_a_norm_is_one_in_the_difference_of_its_arguments(x64, distance):
  a, b = images()
  scaled = distance(3 * (a - b), np.zeros_like(a)) / distance(a, b)
  assert distance.is_norm == np.allclose(scaled, 3, rtol=1e-9)
  assert distance.load() is None
