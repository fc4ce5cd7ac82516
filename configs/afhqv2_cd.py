"""Consistency distillation on AFHQv2 64x64 of EDM's published teacher: configs/ffhq64_cd.py with other
images. ":lpips" (the default), ":l2", ":l1" are the distance. No paper has this row.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm-afhqv2-64x64-uncond-vp.pkl --out=weights/edm-afhqv2
  python -m cm_jax train --config=configs/afhqv2_cd.py --teacher=weights/edm-afhqv2 --workdir=runs/afhqv2/cd \
    --config.accumulation=8
  python -m cm_jax train --config=configs/afhqv2_cd.py:l2 --teacher=weights/edm-afhqv2 \
    --workdir=runs/afhqv2/cd_l2 --config.accumulation=4
  python -m cm_jax train --config=configs/afhqv2_cd.py:l1 --teacher=weights/edm-afhqv2 \
    --workdir=runs/afhqv2/cd_l1 --config.accumulation=4
A pod, the same on every host:
  python -m cm_jax train --config=configs/afhqv2_cd.py --teacher=/data/edm-afhqv2 \
    --workdir=/data/afhqv2/cd

FID: none published. Ours: not yet run.
Compute: 800k steps of 512 images, chosen as for CIFAR-10.
Departures: as configs/ffhq64_cd.py.
"""

import afhqv2_edm
import ffhq64_cd

VARIANTS = ffhq64_cd.VARIANTS


def get_config(variant=""):
  config = ffhq64_cd.get_config(variant)
  config.data.source = afhqv2_edm.SOURCE
  return config
