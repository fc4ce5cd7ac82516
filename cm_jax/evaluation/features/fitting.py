"""Training the networks that measure: Adam, cosine to zero, images varied anew in every step."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from cm_jax.data.pipeline import InMemory, Pipeline
from cm_jax.diffusion.pixels import normalize
from cm_jax.diffusion.precision import computing_in
from cm_jax.notices import progress_bar
from cm_jax.types import Array, Params


def fit(
  network: nn.Module,
  vary: Callable[[Array, Array], Array],
  images: np.ndarray,
  labels: np.ndarray,
  seed: int,
  num_steps: int,
  batch_size: int,
  learning_rate: float,
  clip: float | None = None,
) -> Params:
  """Return the parameters of a classifier `x -> (features, logits)`, trained by its cross-entropy.

  Args:
    network: The classifier.
    vary: (x [B,H,W,C] in [-1, 1], key) -> the same images, moved or mirrored; a function of a module, so that
      equal ones compile once.
    images: uint8 [N,H,W,C].
    labels: int32 [N], from 0.
    seed: Of the initial weights, the batches and what varies.
    num_steps, batch_size, learning_rate: Of the training.
    clip: Of the gradient's norm; None for none.
  """
  pipeline = Pipeline(InMemory({"image": images, "label": labels}), batch_size, seed)
  initial, train_step = _training(network, vary, num_steps, learning_rate, clip)
  key = jax.random.key(seed)
  params, state = initial(key, images[:1])
  for step in progress_bar(range(num_steps), desc="features", unit="step"):
    params, state = train_step(params, state, pipeline.batch(step), jax.random.fold_in(key, step))
  return jax.device_get(params)


@functools.cache
def _training(
  network: nn.Module,
  vary: Callable[[Array, Array], Array],
  num_steps: int,
  learning_rate: float,
  clip: float | None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Return the jitted `initial(key, images)` and `train_step(params, state, batch, key)`, for all seeds."""
  adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
  optimizer = adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)

  @jax.jit
  def initial(key: Array, images: Array) -> tuple[Params, Any]:
    params = network.init(key, normalize(images))["params"]
    return params, optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def train_step(params: Params, state: Any, batch: dict[str, Array], key: Array) -> tuple[Params, Any]:
    def loss(params: Params) -> Array:
      with computing_in("highest"):
        _, logits = network.apply({"params": params}, vary(normalize(batch["image"]), key))
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  return initial, train_step
