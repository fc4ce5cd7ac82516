"""Every network, small enough to compile in seconds; a new entry of NETWORKS needs a line in TINY."""

import functools

import jax
import numpy as np
import pytest

from cm_jax.networks import NETWORKS, as_net, init_params
from cm_jax.types import Condition
from tests.compiling import quick_jit

SHAPE, BATCH, CLASSES, AUGMENT = (4, 4, 2), 3, 4, 5
# one level each: compile time is all these tests cost
TINY = {
  "songunet": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1},
  "adm": {"model_channels": 64, "channel_mult": [1], "num_blocks": 1},
  "edm2": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "channels_per_head": 4},
  # a norm group is one channel here, which removes what is only added to it
  "openai_unet": {
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "use_scale_shift_norm": True,
  },
  "jcm_ncsnpp": {"nf": 8, "ch_mult": [1], "num_res_blocks": 1},
  "small_unet": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1},
  "dit": {"hidden_size": 16, "depth": 1, "num_heads": 2},
  "toy": {},
}
LEVELS = {"jcm_ncsnpp": "ch_mult", "dit": None, "toy": None}
UNLABELLED, UNAUGMENTED = {"jcm_ncsnpp"}, {"edm2", "openai_unet", "dit", "jcm_ncsnpp"}

jit = quick_jit
every_network = pytest.mark.parametrize("name", NETWORKS)
# For what takes seconds a network: the quick suite has it of the cheap ones.
CHEAP = ("dit", "toy")


def in_turn():
  return [pytest.param(name, marks=() if name in CHEAP else pytest.mark.slow) for name in NETWORKS]


every_network_in_turn = pytest.mark.parametrize("name", in_turn())


def make(name, **fields):
  structure = {"img_resolution": SHAPE[0], "in_channels": SHAPE[2], "out_channels": SHAPE[2]}
  structure["label_dim"] = 0 if name in UNLABELLED else CLASSES
  structure["augment_dim"] = 0 if name in UNAUGMENTED else AUGMENT
  return NETWORKS[name](**{**structure, "dropout": 0.5, **TINY[name], **fields})


@functools.cache
def shapes_of(module):
  """Return the shapes of the initial parameters; to trace them is most of what many a test takes."""
  return jax.eval_shape(lambda: init_params(module, jax.random.key(0), SHAPE))


def random_params(module):
  """Draw every parameter at random: initial ones are zero where it hides mistakes."""
  rng = np.random.default_rng(0)
  draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.3).astype(leaf.dtype)
  return jax.tree.map(draw, shapes_of(module))


def inputs(name):
  rng = np.random.default_rng(1)
  label = None if name in UNLABELLED else np.array([0, -1, 3], np.int32)
  augment_label = None if name in UNAUGMENTED else rng.normal(size=(BATCH, AUGMENT)).astype(np.float32)
  x = rng.normal(size=(BATCH, *SHAPE)).astype(np.float32)
  return x, np.array([-1.5, 0.3, 1.0], np.float32), Condition(label, augment_label)


def far(a, b):
  return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@functools.cache
def evaluation(name):
  """Return the jitted evaluate(x, c_noise, condition) with random params."""
  module = make(name)
  return jit(functools.partial(as_net(module), random_params(module)))


# The parameters that a second time adds
SECOND_TIME = {"map_until", "emb_until", "until_gain"}


def split(params):
  """Return (what a network of one time has, what the second time adds), both by name."""
  return tuple({k: v for k, v in params.items() if (k in SECOND_TIME) == added} for added in (False, True))
