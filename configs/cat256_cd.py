"""Consistency distillation on LSUN Cat 256x256 (CM tables 2 and 3): configs/bedroom256_cd.py with other
images. ":lpips" (the default) and ":l2" are the distance.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_cat256_ema.pt --out=weights/edm-cat
  python -m cm_jax train --config=configs/cat256_cd.py --teacher=weights/edm-cat --workdir=runs/cat256/cd \
    --config.accumulation=256
  python -m cm_jax train --config=configs/cat256_cd.py:l2 --teacher=weights/edm-cat \
    --workdir=runs/cat256/cd_l2 --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/cat256_cd.py --teacher=/data/edm-cat \
    --workdir=/data/cat256/cd

Paper: lpips FID 11.0 with 1 NFE, 8.84 with 2; precision, recall 0.65, 0.36 and 0.66, 0.40 (CM table 2). l2 is
not in the table. Ours: not yet run.
Compute: 600k steps of 2,048 images on 64 A100 (CM table 3).
Departures: as configs/bedroom256_cd.py.
"""

import bedroom256_cd
import cat256_edm

VARIANTS = bedroom256_cd.VARIANTS


def get_config(variant=""):
  config = bedroom256_cd.get_config(variant)
  config.data.source = cat256_edm.SOURCE
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  return config
