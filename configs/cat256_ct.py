"""Consistency training on LSUN Cat 256x256 (CM tables 2 and 3): configs/bedroom256_ct.py with other images.
":paper" is the default, ":code" the released model's command.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_cat256_ema.pt --out=weights/edm-cat
  python -m cm_jax train --config=configs/cat256_ct.py --workdir=runs/cat256/ct --config.accumulation=512
  python -m cm_jax train --config=configs/cat256_ct.py:code --teacher=weights/edm-cat \
    --workdir=runs/cat256/ct_code --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/cat256_ct.py --workdir=/data/cat256/ct

Paper: FID 20.7 with 1 NFE, 11.7 with 2; precision, recall 0.56, 0.23 and 0.63, 0.36 (CM table 2). Ours: not
yet run.
Compute: 1,000k steps of 2,048 images on 64 A100 (CM table 3).
Departures: as configs/bedroom256_ct.py; that OpenAI's command for Bedroom is Cat's too is UNCONFIRMED.
"""

import bedroom256_ct
import cat256_edm

VARIANTS = bedroom256_ct.VARIANTS


def get_config(variant=""):
  config = bedroom256_ct.get_config(variant)
  config.data.source = cat256_edm.SOURCE
  config.sigmas_by_nfe = {"2": (80.0, 5.249)}  # index 62 of 151
  return config
