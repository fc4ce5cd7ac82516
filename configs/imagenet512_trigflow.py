"""TrigFlow diffusion teachers on the latents of ImageNet 512x512 (sCM table 5): EDM2's networks with a
positional embedding of the angle and adaptive double normalisation, their labels dropped in a tenth of the
cases, for guidance. ":s" is the default, ":m", ":l", ":xl", ":xxl" the others. Those of sCT and sCD.

  python -m cm_jax train --config=configs/imagenet512_trigflow.py --workdir=runs/imagenet512/trigflow_s \
    --config.accumulation=16
  python -m cm_jax train --config=configs/imagenet512_trigflow.py:m --workdir=runs/imagenet512/trigflow_m \
    --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet512_trigflow.py:l --workdir=runs/imagenet512/trigflow_l \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_trigflow.py:xl --workdir=runs/imagenet512/trigflow_xl \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_trigflow.py:xxl \
    --workdir=runs/imagenet512/trigflow_xxl --config.accumulation=128
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet512_trigflow.py:xxl \
    --workdir=/data/imagenet512/trigflow_xxl --config.mesh.fsdp=8

Paper: FID in sCM table 5, UNCONFIRMED here; it is of decoded images, and the decoder is not yet built. Ours:
not yet run.
Compute: 1048k, 1048k, 696k, 598k, 376k steps of 2,048 images; the paper does not say how long.
Departures: as configs/imagenet64_trigflow.py.
"""

import imagenet64_trigflow
import imagenet512_edm2

from cm_jax.config import variant_of

# Steps, relative width of the average
SIZES = {
  "s": (1_048_000, 0.025),
  "m": (1_048_000, 0.03),
  "l": (696_000, 0.015),
  "xl": (598_000, 0.02),
  "xxl": (376_000, 0.015),
}
VARIANTS = imagenet512_edm2.VARIANTS


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  steps, width = SIZES[size]
  config = imagenet64_trigflow.in_trigflow(imagenet512_edm2.get_config(size), steps, width)
  config.objective.label_dropout = 0.1
  return config
