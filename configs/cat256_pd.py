"""Progressive distillation on LSUN Cat 256x256 (CM table 2, row "PD"): configs/bedroom256_pd.py with other
images, and as UNCONFIRMED.

  python -m cm_jax convert --input=edm_cat256_ema.pt --out=weights/edm-cat
  python -m cm_jax train --config=configs/cat256_pd.py --teacher=weights/edm-cat --workdir=runs/cat256/pd \
    --config.accumulation=512
A pod, the same on every host:
  python -m cm_jax train --config=configs/cat256_pd.py --teacher=/data/edm-cat \
    --workdir=/data/cat256/pd

Paper: FID 29.6 with 1 NFE, 15.5 with 2; precision, recall 0.51, 0.25 and 0.59, 0.36 (CM table 2). Ours: not
yet run.
Compute: the paper does not say.
Departures: as configs/bedroom256_pd.py.
"""

import bedroom256_pd
import cat256_edm


def get_config():
  config = bedroom256_pd.get_config()
  config.data.source = cat256_edm.SOURCE
  return config
