"""sCT on the latents of ImageNet 512x512 (sCM tables 2 and 5) from the TrigFlow teachers' weights: ":s" is
the default, ":m", ":l", ":xl", ":xxl" the others.

  python -m cm_jax train --config=configs/imagenet512_sct.py --init=runs/imagenet512/trigflow_s \
    --workdir=runs/imagenet512/sct_s --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet512_sct.py:m --init=runs/imagenet512/trigflow_m \
    --workdir=runs/imagenet512/sct_m --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_sct.py:l --init=runs/imagenet512/trigflow_l \
    --workdir=runs/imagenet512/sct_l --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_sct.py:xl --init=runs/imagenet512/trigflow_xl \
    --workdir=runs/imagenet512/sct_xl --config.accumulation=128
  python -m cm_jax train --config=configs/imagenet512_sct.py:xxl --init=runs/imagenet512/trigflow_xxl \
    --workdir=runs/imagenet512/sct_xxl --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet512_sct.py:xxl \
    --init=/data/imagenet512/trigflow_xxl --workdir=/data/imagenet512/sct_xxl \
    --config.mesh.fsdp=8

Paper: FID with 1 and 2 NFE of s 10.13, 9.86, m 5.84, 5.53, l 5.15, 4.65, xl 4.33, 3.73, xxl 4.29, 3.76 (sCM
table 5); it is of decoded images, and the decoder is not yet built. Ours: not yet run.
Compute: 100k steps of 2,048 images; the paper does not say how long.
Departures: as configs/imagenet64_sct.py.
"""

import imagenet64_sct
import imagenet512_trigflow

from cm_jax.config import variant_of

RATES = {**imagenet64_sct.RATES, "xxl": 6.5e-5}
DROPOUT = {"s": 0.25, "m": 0.35, "l": 0.35, "xl": 0.35, "xxl": 0.35}
VARIANTS = imagenet512_trigflow.VARIANTS


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  config = imagenet64_sct.continuous(imagenet512_trigflow.get_config(size), RATES[size])
  config.num_images = 100_000 * 2048
  config.objective.levels.P_mean = -0.8
  config.network.dropout = DROPOUT[size]
  return config
