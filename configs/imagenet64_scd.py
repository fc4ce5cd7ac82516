"""sCD on ImageNet 64x64 (sCM tables 2 and 4): as sCT, with the teacher's drift and no dropout. ":s" is the
default, ":m", ":l", ":xl" the others.

  python -m cm_jax train --config=configs/imagenet64_scd.py --teacher=runs/imagenet64/trigflow_s \
    --workdir=runs/imagenet64/scd_s --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet64_scd.py:m --teacher=runs/imagenet64/trigflow_m \
    --workdir=runs/imagenet64/scd_m --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_scd.py:l --teacher=runs/imagenet64/trigflow_l \
    --workdir=runs/imagenet64/scd_l --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_scd.py:xl --teacher=runs/imagenet64/trigflow_xl \
    --workdir=runs/imagenet64/scd_xl --config.accumulation=128
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_scd.py:xl \
    --teacher=/data/imagenet64/trigflow_xl --workdir=/data/imagenet64/scd_xl \
    --config.mesh.fsdp=8

Paper: FID with 1 and 2 NFE of s 2.97, 2.07, m 2.79, 1.89, l 2.43, 1.70, xl 2.44, 1.66 (sCM table 4). Ours:
not yet run.
Compute: 400k steps of 2,048 images; the paper does not say how long.
Departures: as configs/imagenet64_sct.py.
"""

import imagenet64_sct

from cm_jax.config import variant_of

VARIANTS = imagenet64_sct.VARIANTS


def get_config(variant=""):
  config = imagenet64_sct.get_config(variant_of(variant, VARIANTS))
  config.objective.drift = "teacher"
  config.init.path = "teacher"
  config.network.dropout = 0.0
  return config
