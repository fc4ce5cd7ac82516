"""EDM diffusion teacher on LSUN Cat 256x256 (CM table 2, row "EDM"): configs/bedroom256_edm.py with other
images and half as long. OpenAI's own weights are `edm_cat256_ema.pt`.

  python -m cm_jax data prepare --source=lmdb:cat --crop=adm --resolution=256 --out=cat256.zip
  python -m cm_jax train --config=configs/cat256_edm.py --workdir=runs/cat256/edm --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/cat256_edm.py --workdir=/data/cat256/edm

Paper: FID 6.69, precision 0.70, recall 0.43 with 79 NFE (CM table 2). Ours: not yet run.
Compute: 300k steps of 2,048 images (CM appendix C).
Departures: as configs/bedroom256_edm.py.
"""

import bedroom256_edm

SOURCE = "zip:cat256.zip"


def get_config():
  config = bedroom256_edm.get_config()
  config.data.source = SOURCE
  config.num_images = 300_000 * 2048
  return config
