"""EDM diffusion teachers on AFHQv2 64x64 (EDM table 2, configuration F; the commands of its README): as
configs/ffhq64_edm.py, with more dropout. ":vp" is the default, ":ve" the other.

  python -m cm_jax data prepare --source=folder:afhqv2 --crop=edm --resolution=64 --out=afhqv2_64.zip
  python -m cm_jax train --config=configs/afhqv2_edm.py --workdir=runs/afhqv2/edm --config.accumulation=2
  python -m cm_jax train --config=configs/afhqv2_edm.py:ve --workdir=runs/afhqv2/edm_ve \
    --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/afhqv2_edm.py --workdir=/data/afhqv2/edm

FID of vp 1.96 with 79 NFE (40 steps of Heun; EDM's example.py). That of ve: UNCONFIRMED. Ours: not yet run.
Compute: 200 M images in batches of 256, about four days on 8 V100 (EDM's README).
Departures: as configs/ffhq64_edm.py.
"""

import ffhq64_edm

SOURCE = "zip:afhqv2_64.zip"
VARIANTS = ffhq64_edm.VARIANTS


def get_config(variant=""):
  config = ffhq64_edm.get_config(variant)
  config.data.source = SOURCE
  config.network.dropout = 0.25
  return config
