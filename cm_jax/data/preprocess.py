"""What is done to a batch on the device, in every step: to [-1, 1], latents drawn, mirrored, augmented."""

import dataclasses

import jax
import jax.numpy as jnp

from cm_jax.data.augment import Augment, random_flip
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.pixels import normalize
from cm_jax.types import Array, Batch

# What is folded into the step's key for a draw of its own. The keys of `random_flip`'s examples are
# fold_in(key, i): these lie beyond any batch.
LATENTS, AUGMENTATION = 2**32 - 2, 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Makes a batch ready for the objective: (batch, key) -> batch.

  Images become float in [-1, 1]; latents with a deviation ("std") are drawn from it and their mean.

  Args:
    flip: Mirror each image left to right with probability 1/2.
    conditional: Keep the labels.
    augment: Transforms the images and says so in "augment_label"; None for none.

  >>> batch = {"image": jnp.full((1, 2, 2, 1), 255, jnp.uint8), "label": jnp.array([3])}
  >>> ready = Preprocess(flip=False, conditional=True)(batch, jax.random.key(0))
  >>> ready["image"].ravel().tolist(), ready["label"].tolist()
  ([1.0, 1.0, 1.0, 1.0], [3])
  """

  flip: bool
  conditional: bool
  augment: Augment | None = None

  def __call__(self, batch: Batch, key: Array) -> dict[str, Array]:
    """Return the batch as the objective takes it."""
    image = normalize(batch["image"])
    if "std" in batch:
      z = per_sample_noise(jax.random.fold_in(key, LATENTS), jnp.arange(len(image)))
      image = image + batch["std"] * z(0, image.shape)
    ready = {"image": random_flip(image, key) if self.flip else image}
    if self.augment is not None:
      key = jax.random.fold_in(key, AUGMENTATION)
      ready["image"], ready["augment_label"] = self.augment(ready["image"], key)
    return ready | ({"label": batch["label"]} if self.conditional else {})
