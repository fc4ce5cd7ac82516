"""What the loss cases share: the peers' toy network; losses and gradients in the peers' names and layout."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert.foreign import Foreign, build_network, fill
from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.diffusion.distances import L1, L2, LInf
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.storage import weights
from cm_jax.types import Context, NoiseRange
from tests.compiling import quick_jit
from tests.golden.options import UnknownOption, choice
from tests.golden.runner import Case, Result

STEP = np.int32(0)
KEY = jax.random.key
DISTANCES = {"l1": L1(), "l2": L2(), "l2-32": L2(size=32), "linf": LInf()}
# as OpenAI and jcm write them
WEIGHT_NAMES = {
  "uniform": "uniform",
  "karras": "karras",
  "snr": "snr",
  "snr+1": "snr_plus_one",
  "snrp1": "snr_plus_one",
  "truncated-snr": "truncated_snr",
  "truncated_snr": "truncated_snr",
}
# The draws come from outside; an objective then asks its pairs for metrics only, and runs that differ in
# nothing else share a program.
UNUSED_PAIRS = KarrasPairs(NoiseRange(), constant(2))
PRECISIONS = ("float32", "float64")


def distance_of(name: str, where: str) -> Any:
  """Return the distance that a peer calls so; LPIPS is none, its weights are in no fixture."""
  return choice(name, DISTANCES, f"{where}: loss_norm")


def weight_of(name: str, where: str) -> Any:
  """Return the weight that a peer calls so."""
  return WEIGHTS[choice(name, WEIGHT_NAMES, f"{where}: weight")]


def is_toy(case: Case) -> bool:
  """Say whether a case's network is the toy one, else one that meta.json's `net` describes as a dict."""
  net = case.meta["net"]
  if isinstance(net, str) and not net.startswith("ToyNet: F(x, c) = conv2(silu(conv1(x)"):
    raise UnknownOption(f"net = {net[:80]!r} is not known here")
  return isinstance(net, str)


@functools.cache
def toy_net(c_scale: float = 1.0) -> Callable[..., jax.Array]:
  """Return the toy network of the loss cases (meta.json, `net`) as a `Net`.

  F = conv2(silu(conv1(x) + u c_scale c + wl[label])).
  """

  def conv(x, weight, bias):
    options = {"padding": "SAME", "dimension_numbers": ("NHWC", "OIHW", "NHWC")}
    return jax.lax.conv_general_dilated(x, weight, (1, 1), **options) + bias[None, None, None]

  def net(params, x, c_noise, condition=NOTHING, *, key=None):
    emb = (c_scale * c_noise)[:, None] * params["u"][None]
    if condition.label is not None:
      emb = emb + jax.nn.one_hot(condition.label, params["wl"].shape[1], dtype=x.dtype) @ params["wl"].T
    return conv(
      jax.nn.silu(conv(x, params["w1"], params["b1"]) + emb[:, None, None, :]), params["w2"], params["b2"]
    )

  return net


def toy_params(case: Case, prefix: str = "") -> dict[str, dict[str, jax.Array]]:
  """Return the toy network's parameters as a params tree, under the peer's names and in its layout."""
  names = ("w1", "b1", "u", "w2", "b2", "wl")
  return {"net": {name: real(case.weights[prefix + name]) for name in names if prefix + name in case.weights}}


def real(array: np.ndarray) -> jax.Array:
  """Return an array in the default float type."""
  return jnp.asarray(array, jnp.result_type(float))


def images(array: np.ndarray) -> jax.Array:
  """Bring a PyTorch peer's [N,C,H,W] into our layout, in the default float type."""
  return real(array.transpose(0, 2, 3, 1))


@functools.partial(quick_jit, static_argnums=(0, 1, 2))
def losses_and_grads(
  objective, student, teacher, params, target_params, teacher_params, batch, draws, weights
):
  """Return the losses [B], and the value and gradient of their sum with `weights` [B]."""

  def loss(params):
    output = objective.loss(
      params, Context(student, teacher, target_params, teacher_params), batch, draws, STEP
    )
    return weights @ output.per_example, output.per_example

  (value, per_example), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return per_example, value, grads["net"]


def mean_weights(x: jax.Array) -> jax.Array:
  """Return the weights of a plain mean over the batch."""
  return jnp.full(x.shape[:1], 1 / x.shape[0], x.dtype)


def grad_results(case: Case, run: str, grads: Mapping[str, Any], dtype: str) -> Iterator[Result]:
  """Yield a run's gradients, by the peer's names, as one row; a parameter that only one side has fails."""
  names = {name.removeprefix(f"{run}__grad.") for name in case.outputs() if name.startswith(f"{run}__grad.")}
  if not names:
    return
  if names != set(grads):
    differing = sorted(names ^ set(grads))
    yield Result(
      f"{run}__grad", passed=False, note=f"parameters of one side only: {', '.join(differing[:3])}"
    )
    return
  # What comes before a softmax over keys, such as its bias, has gradient 0: both sides hold rounding errors
  # of the others' size.
  least = 1e-3 * max(float(np.abs(value).max()) for value in grads.values())
  yield Result(
    f"{run}__grad",
    parts={f"{run}__grad.{name}": value for name, value in grads.items()},
    dtype=dtype,
    least=least,
  )


def load(foreign: Foreign, dtype: str, **network: Any) -> tuple[Any, dict[str, Any]]:
  """Return the module and the params of a checkpoint, computing in `dtype`."""
  module = build_network(
    {**foreign.network, "dtype": dtype, **network}, foreign.image_shape, foreign.num_classes
  )
  return module, jax.tree.map(real, fill(foreign, module))


def foreign_grads(foreign: Foreign, grads: Any) -> dict[str, np.ndarray]:
  """Return gradients under a checkpoint's names and in its layout: the inverse of `foreign.layout`."""
  ours = {name.replace("/", "."): np.asarray(value) for name, value in weights.flatten(grads).items()}
  theirs = {}
  for name, value in ours.items():
    shape = foreign.arrays[name].shape
    places = foreign.layout(name, np.arange(value.size).reshape(shape))
    theirs[name] = np.empty(value.size, value.dtype)
    theirs[name][places.ravel()] = value.ravel()
    theirs[name] = theirs[name].reshape(shape)
  return theirs
