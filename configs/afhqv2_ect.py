"""Easy consistency tuning on AFHQv2 64x64 from EDM's published teacher: configs/ffhq64_ect.py with other
images. No paper has this row.

  python -m cm_jax convert --input=edm-afhqv2-64x64-uncond-vp.pkl --out=weights/edm-afhqv2
  python -m cm_jax train --config=configs/afhqv2_ect.py --init=weights/edm-afhqv2 --workdir=runs/afhqv2/ect
A pod, the same on every host:
  python -m cm_jax train --config=configs/afhqv2_ect.py --init=/data/edm-afhqv2 \
    --workdir=/data/afhqv2/ect

FID: none published. Ours: not yet run.
Compute: 200k steps of 128 images, chosen as for CIFAR-10.
Departures: as configs/ffhq64_ect.py.
"""

import afhqv2_edm
import ffhq64_ect


def get_config():
  config = ffhq64_ect.get_config()
  config.data.source = afhqv2_edm.SOURCE
  return config
