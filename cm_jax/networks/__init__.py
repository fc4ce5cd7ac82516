"""Networks F(x, c_noise, condition): the architectures of the field, numerically their authors', by name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.networks import kernels
from cm_jax.networks.adm import DhariwalUNet
from cm_jax.networks.base import Network
from cm_jax.networks.dit import DiT
from cm_jax.networks.edm2 import EDM2UNet
from cm_jax.networks.jcm_ncsnpp import JcmNCSNpp
from cm_jax.networks.openai_unet import OpenAIUNet
from cm_jax.networks.small_unet import SmallUNet
from cm_jax.networks.songunet import SongUNet
from cm_jax.networks.toy import ToyNet
from cm_jax.types import Array, Condition, Net, Params

NETWORKS: dict[str, type[Network]] = {
  "songunet": SongUNet,
  "adm": DhariwalUNet,
  "edm2": EDM2UNet,
  "openai_unet": OpenAIUNet,
  "jcm_ncsnpp": JcmNCSNpp,
  "dit": DiT,
  "small_unet": SmallUNet,
  "toy": ToyNet,
}


# How the names of parameters end that are drawn once and not trained.
_FROZEN = (("freqs",), ("phases",), ("GaussianFourierProjection_0", "W"))


def frozen(params: Params) -> Any:
  """Return a tree of bool: which parameters are drawn once and never trained, the frequencies and phases of
  Fourier embeddings. They are kept beside the weights, have no gradient, and nothing else may move them.

  >>> frozen({"net": {"emb_fourier": {"freqs": 1.0}, "conv": {"weight": 1.0}}})
  {'net': {'conv': {'weight': False}, 'emb_fourier': {'freqs': True}}}
  """
  is_frozen = lambda path, _: any(tuple(path[-len(end) :]) == end for end in _FROZEN)
  name = lambda key: key.key if isinstance(key, jax.tree_util.DictKey) else None
  named = lambda path, leaf: is_frozen([name(key) for key in path], leaf)
  return jax.tree_util.tree_map_with_path(named, params)


def as_net(module: Network) -> Net:
  """Return the module as a function of its params; a `key` is training mode and feeds the dropout."""

  def net(
    params: Params, x: Array, c_noise: Array, condition: Condition = NOTHING, *, key: Array | None = None
  ) -> Any:
    rngs = None if key is None else {"dropout": key}
    with kernels.using(module.kernels):
      return module.apply({"params": params}, x, c_noise, condition, train=key is not None, rngs=rngs)

  return net


def init_params(module: nn.Module, key: Array, image_shape: tuple[int, int, int]) -> Params:
  """Draw the initial params, a float32 tree, for images of shape (H, W, C). Jit it: seconds otherwise."""
  with kernels.using("plain"):  # shapes are worked out before there is a backend to ask
    return module.init({"params": key}, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))["params"]
