"""How class labels, augmentation labels and guidance scales reach a network's conditioning vector."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.networks.layers import Init, Linear, positional_embedding
from cm_jax.types import Array


def one_hot(label: Array | None, size: int, batch: int, dtype) -> Array:
  """Return [batch, size] rows: one-hot of `label` int32 [batch], zeros where it is -1 or for `label=None`.

  >>> one_hot(jnp.array([1, -1]), 2, 2, jnp.float32).tolist()
  [[0.0, 1.0], [0.0, 0.0]]
  """
  if label is None:
    return jnp.zeros((batch, size), dtype)
  return jax.nn.one_hot(label, size, dtype=dtype)


def label_row(network: Any, label: Array | None, batch: int, dtype, train: bool) -> Array:
  """Return `one_hot` rows [batch, label_dim]; in training each is zeroed with probability `label_dropout`."""
  row = one_hot(label, network.label_dim, batch, dtype)
  if train and network.label_dropout:
    keep = jax.random.bernoulli(network.make_rng("dropout"), 1 - network.label_dropout, (batch, 1))
    row = row * keep.astype(dtype)
  return row


def augment_term(net: nn.Module, augment_label: Array | None, features: int, initial: Init, dtype) -> Array | float:
  """Map the augmentation label [B, augment_dim] to [B, features] by "map_augment"; 0 where there is none."""
  if not net.augment_dim or (augment_label is None and not net.is_initializing()):
    return 0.0
  row = jnp.zeros((1, net.augment_dim), dtype) if augment_label is None else augment_label.astype(dtype)
  return Linear(features, initial, use_bias=False, dtype=jnp.dtype(dtype).name, name="map_augment")(row)


def guidance_embedding(net: nn.Module, guidance: Array | None, channels: int, batch: int, dtype) -> Array | None:
  """Embed a guidance scale [B] (None: 1, no guidance) as [B, channels]; None for a network that does not take one.

  Raises:
    UserError: A scale given to a network built without `guidance_embedding`.
  """
  if not net.guidance_embedding:
    if guidance is not None:
      raise UserError("config.network.guidance_embedding", False, "True to condition on a guidance scale")
    return None
  scale = jnp.ones((), dtype) if guidance is None else guidance.astype(dtype)
  return positional_embedding(jnp.broadcast_to(scale, (batch,)), channels)


def guidance_term(net: nn.Module, guidance: Array | None, features: int, batch: int, dtype) -> Array | float:
  """Map a guidance scale to [B, features] by "map_guidance", which starts at zero so that it changes no loaded network (sCM)."""
  row = guidance_embedding(net, guidance, features, batch, dtype)
  if row is None:
    return 0.0
  return Linear(features, Init("xavier_uniform", 0.0), dtype=jnp.dtype(dtype).name, name="map_guidance")(row)
