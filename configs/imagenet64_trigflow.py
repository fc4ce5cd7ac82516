"""TrigFlow diffusion teachers on ImageNet 64x64 (sCM table 4): EDM2's networks with a positional embedding of
the angle and adaptive double normalisation. ":s" is the default, ":m", ":l", ":xl" the others. Those of
sCT and sCD.

  python -m cm_jax train --config=configs/imagenet64_trigflow.py --workdir=runs/imagenet64/trigflow_s \
    --config.accumulation=16
  python -m cm_jax train --config=configs/imagenet64_trigflow.py:m --workdir=runs/imagenet64/trigflow_m \
    --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet64_trigflow.py:l --workdir=runs/imagenet64/trigflow_l \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_trigflow.py:xl --workdir=runs/imagenet64/trigflow_xl \
    --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_trigflow.py:xl \
    --workdir=/data/imagenet64/trigflow_xl --config.mesh.fsdp=8

Paper: FID of s 1.70, m 1.55, l 1.44, xl 1.38 (sCM table 4; the number of steps is UNCONFIRMED, EDM2's 63 NFE
are taken). Ours: not yet run.
Compute: 1048k, 1486k, 761k, 540k steps of 2,048 images; the paper does not say how long.
Departures: bfloat16 for float16. Where the double normalisation goes in EDM2's blocks is our reading
(cm_jax/networks/edm2.py): the paper counts 0.1 M parameters more for l and xl. Its learned weight is EDM2's
head.
UNCONFIRMED, EDM2's being taken: the learning rate and its schedule, dropout.
"""

import imagenet64_edm2

from cm_jax.config import variant_of

# Steps, relative width of the average
SIZES = {"s": (1_048_000, 0.075), "m": (1_486_000, 0.06), "l": (761_000, 0.04), "xl": (540_000, 0.04)}
VARIANTS = imagenet64_edm2.VARIANTS


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  return in_trigflow(imagenet64_edm2.of_size(size), *SIZES[size])


def in_trigflow(config, steps, width):
  """Return EDM2's config in TrigFlow, for so many steps and with an average of this relative width."""
  config.num_images = steps * 2048
  config.precond = {"name": "trigflow"}
  config.network.embedding_type = "positional"
  config.network.modulation = "double"
  config.objective.reduction = "mean"
  config.optimizer.eps = 1e-11
  config.averages = {"ema": {"name": "power", "sigma_rel": width}}
  config.run.snapshot_every = 0
  return config
