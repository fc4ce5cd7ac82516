"""Networks F(x, c_noise): the architectures of the field, numerically their authors', by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm_jax.networks.adm import DhariwalUNet
from cm_jax.networks.dit import DiT
from cm_jax.networks.edm2 import EDM2UNet
from cm_jax.networks.jcm_ncsnpp import JcmNCSNpp
from cm_jax.networks.magnitude import normalize_weights
from cm_jax.networks.openai_unet import OpenAIUNet
from cm_jax.networks.songunet import SongUNet
from cm_jax.networks.toy import ToyNet
from cm_jax.types import Net, Params

NETWORKS: dict[str, type[nn.Module]] = {
  "songunet": SongUNet,
  "adm": DhariwalUNet,
  "edm2": EDM2UNet,
  "openai_unet": OpenAIUNet,
  "jcm_ncsnpp": JcmNCSNpp,
  "dit": DiT,
  "toy": ToyNet,
}

# What is to be applied to a network's params after every update, where anything is
PROJECTIONS: dict[str, Callable[[Params], Params]] = {"edm2": normalize_weights}


def as_net(module: nn.Module) -> Net:
  """Return the module as a function of its params; a `key` switches to training mode and feeds the dropout."""

  def net(params, x, c_noise, *, label=None, augment_label=None, guidance=None, key=None):
    conditions = {"label": label, "augment_label": augment_label, "guidance": guidance}
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, x, c_noise, **conditions, train=key is not None, rngs=rngs)

  return net


def init_params(module: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> Params:
  """Draw the initial params, a float32 tree, for images of shape (H, W, C). Jit it: seconds otherwise."""
  return module.init({"params": key}, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))["params"]
