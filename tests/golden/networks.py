"""What the network cases share: a network from a fixture's weights, its outputs in the fixture's layout."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import jcm
from cm_jax.convert.foreign import Foreign, abstract_params, build_network, fill
from cm_jax.convert.readers.pickles import Refused
from cm_jax.diffusion.denoiser import NOTHING, Preconditioned
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError
from cm_jax.networks import as_net
from cm_jax.types import Condition, NoiseRange
from tests.golden.options import UnknownOption, choice, read
from tests.golden.runner import Case, Result

# of jcm's `config.model`: what its NCSNpp does not read, and what has one value only
_JCM_NO_EFFECT = ("attention_type", "beta_min", "beta_max", "sigma_min", "sigma_max", "ema_rate", "conv_size")
_JCM_FIXED = {**jcm.FIXED, "name": "ncsnpp"}


def jcm_config(case: Case) -> dict[str, Any]:
  """Return the `config.model` of a case of jcm.

  Raises:
    UnknownOption: It has an option, or a value, that nothing here acts on.
  """
  config = case.meta["model_config"]
  known = dict.fromkeys((*jcm.OPTIONS, *jcm.OUR_NAMES, *_JCM_FIXED, *_JCM_NO_EFFECT, "num_scales"))
  read(config, "model_config", **known)
  for name, value in _JCM_FIXED.items():
    choice(config.get(name, value), {str(value).lower(): value}, f"model_config: {name}")
  return config


def check_mode(case: Case) -> None:
  """Check that a network's reference is of evaluation.

  Raises:
    UnknownOption: It is of something else.
  """
  if not case.meta.get("mode", "eval").startswith("eval"):
    raise UnknownOption(f"mode = {case.meta['mode']!r} is not known here (only eval)")


def nhwc(x: np.ndarray | None) -> jax.Array | None:
  """Bring an array of a PyTorch peer into our layout."""
  return None if x is None else jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


def nchw(x: jax.Array) -> np.ndarray:
  """Bring an array into the layout of a PyTorch peer."""
  return np.asarray(x).transpose(0, 3, 1, 2)


def labels(one_hot: np.ndarray | None) -> jax.Array | None:
  """Return class numbers from rows that are one-hot or zero (-1).

  Raises:
    ValueError: A row is neither.
  """
  if one_hot is None:
    return None
  if not (np.isin(one_hot, (0, 1)).all() and (one_hot.sum(1) <= 1).all()):
    raise ValueError("class labels that are not one-hot")
  return jnp.asarray(np.where(one_hot.sum(1) == 1, one_hot.argmax(1), -1), jnp.int32)


def assemble(foreign: Foreign, dtype: str = "float32") -> tuple[Preconditioned, dict[str, Any]]:
  """Return the preconditioned network and its params, as the weights folder of `foreign` would give them."""
  module = build_network({**foreign.network, "dtype": dtype}, foreign.image_shape, foreign.num_classes)
  precond = dict(foreign.precond)
  made = PRECONDS[precond.pop("name")](NoiseRange(**foreign.noise), **precond)
  return Preconditioned(as_net(module), made), jax.tree.map(jnp.asarray, fill(foreign, module))


def evaluator(
  foreign: Foreign, dtype: str = "float32"
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """Return the jitted (x, sigma, condition) -> (D, F, c_noise) of a checkpoint: one compilation, F shared."""
  preconditioned, params = assemble(foreign, dtype)

  def evaluate(x, sigma, condition=NOTHING):
    scalings = preconditioned.precond(sigma)
    F = preconditioned.net(params["net"], scalings.c_in[:, None, None, None] * x, scalings.c_noise, condition)
    return preconditioned(params, condition)(x, sigma), F, scalings.c_noise

  return jax.jit(evaluate)


def no_labels(condition: Condition) -> Condition:
  """Return the condition of a batch without any label, in the form that compiles to the same program."""
  return (
    condition if condition.label is None else condition._replace(label=jnp.full_like(condition.label, -1))
  )


def reduced_precision(case: Case, foreign: Foreign, name: str, *inputs: Any) -> Iterator[Result]:
  """Yield the row that reports how far bfloat16 is off, if the network computes in it."""
  back = nchw if "NCHW" in case.meta.get("layout", "") else np.asarray
  yield Result(name, lambda: back(evaluator(foreign, "bfloat16")(*inputs)[0]), report=True, note="bfloat16")


def same_names(what: str, describe: Callable[[], Foreign], num_params: int) -> Iterator[Result]:
  """Yield whether our network needs just a checkpoint's parameters, by name and shape; allocate nothing."""
  try:
    foreign = describe()
    module = build_network(foreign.network, foreign.image_shape, foreign.num_classes)
  except (Refused, UserError) as error:
    yield Result(what, passed=False, note=str(error))
    return
  ours = {
    name.replace("/", "."): shape for name, shape in abstract_params(module, foreign.image_shape).items()
  }
  theirs = {name: foreign.layout(name, array).shape for name, array in foreign.arrays.items()}
  differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
  note = "; ".join(f"{name}: ours {ours.get(name)}, theirs {theirs.get(name)}" for name in differing[:3])
  yield Result(
    f"{what}: {len(theirs)} names and shapes", passed=not differing, note=note or f"{num_params:,} parameters"
  )


def shaped(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Return arrays of these shapes that take no memory."""
  return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
