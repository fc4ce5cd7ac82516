"""Easy consistency tuning on FFHQ 64x64 from EDM's published teacher: the recipe of configs/cifar10_ect.py on
EDM's network for these images. No paper has this row.

  python -m cm_jax convert --input=edm-ffhq-64x64-uncond-vp.pkl --out=weights/edm-ffhq
  python -m cm_jax train --config=configs/ffhq64_ect.py --init=weights/edm-ffhq --workdir=runs/ffhq64/ect
A pod, the same on every host:
  python -m cm_jax train --config=configs/ffhq64_ect.py --init=/data/edm-ffhq \
    --workdir=/data/ffhq64/ect

FID: none published. Ours: not yet run.
Compute: 200k steps of 128 images, chosen as for CIFAR-10.
Departures: all of it is CIFAR-10's recipe but the network (UNCONFIRMED for these images), its second noise
level too, which is therefore left out.
"""

import cifar10_ect
import ffhq64_edm


def get_config():
  config, theirs = cifar10_ect.get_config(), ffhq64_edm.get_config()
  config.data.source, config.data.image_shape = theirs.data.source, theirs.data.image_shape
  config.network.channel_mult = theirs.network.channel_mult
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  return config
