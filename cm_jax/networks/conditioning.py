"""How labels, augmentation, guidance scales and second times reach a network's conditioning vector."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.networks.layers import Init, Linear, positional_embedding
from cm_jax.types import Array, Condition

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", 0.0)


class Scalar(NamedTuple):
  """A number that a network may be told beside its noise level.

  Attributes:
    name: Its field of `Condition`.
    field: The network's field that says whether the network takes it.
    what: In words.
    default: What None stands for.
  """

  name: str
  field: str
  what: str
  default: float

  def of(self, net: nn.Module, condition: Condition, batch: int, dtype: Any) -> Array | None:
    """Return the number [batch] that a network is told; None for one that does not take it.

    Raises:
      UserError: It is given to a network that does not take it.
    """
    value = getattr(condition, self.name)
    if getattr(net, self.field):
      told = jnp.full((), self.default, dtype) if value is None else value.astype(dtype)
      return jnp.broadcast_to(told, (batch,))
    if value is not None:
      raise UserError(self.field, False, f"True to condition on {self.what}")
    return None


GUIDANCE = Scalar("guidance", "guidance_embedding", "a guidance scale", 1.0)
UNTIL = Scalar("until", "second_time", "a second time", 0.0)


def scalars(net: nn.Module, condition: Condition, batch: int, channels: int, dtype: Any) -> dict[str, Array]:
  """Embed the numbers that a network takes, guidance scale and second time, by name: [batch, channels] each.

  Raises:
    UserError: One is given to a network that does not take it.
  """
  told = {scalar.name: scalar.of(net, condition, batch, dtype) for scalar in (GUIDANCE, UNTIL)}
  return {name: positional_embedding(value, channels) for name, value in told.items() if value is not None}


def terms(net: Any, emb: Array, condition: Condition, augment_init: Init = INIT) -> Array:
  """Add to an embedding [B, features] what a network takes besides: augmentation, guidance, second time.

  The layers "map_guidance" and "map_until" start at zero and change no loaded network that lacks them (sCM).

  Raises:
    UserError: A number that the network does not take.
  """
  (batch, features), dtype = emb.shape, emb.dtype
  if net.augment_dim and (condition.augment_label is not None or net.is_initializing()):
    label = jnp.zeros((1, net.augment_dim)) if condition.augment_label is None else condition.augment_label
    augment = Linear(features, augment_init, use_bias=False, dtype=dtype.name, name="map_augment")
    emb = emb + augment(label.astype(dtype))
  for name, row in scalars(net, condition, batch, features, dtype).items():
    emb = emb + Linear(features, INIT_ZERO, dtype=dtype.name, name=f"map_{name}")(row)
  return emb


def one_hot(label: Array | None, size: int, batch: int, dtype: Any) -> Array:
  """Return [batch, size] rows: one-hot of `label` int32 [batch], zeros where it is -1 or for `label=None`.

  >>> one_hot(jnp.array([1, -1]), 2, 2, jnp.float32).tolist()
  [[0.0, 1.0], [0.0, 0.0]]
  """
  if label is None:
    return jnp.zeros((batch, size), dtype)
  return jax.nn.one_hot(label, size, dtype=dtype)


def label_row(network: Any, label: Array | None, batch: int, dtype: Any, train: bool) -> Array:
  """Return `one_hot` rows [batch, label_dim]; in training each is zeroed with probability `label_dropout`."""
  row = one_hot(label, network.label_dim, batch, dtype)
  if train and network.label_dropout:
    keep = jax.random.bernoulli(network.make_rng("dropout"), 1 - network.label_dropout, (batch, 1))
    row = row * keep.astype(dtype)
  return row
