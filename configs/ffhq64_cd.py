"""Consistency distillation on FFHQ 64x64 of EDM's published teacher: the recipe of configs/cifar10_cd.py (CM
table 3) on EDM's network for these images. ":lpips" (the default), ":l2", ":l1" are the distance. No paper
has this row.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm-ffhq-64x64-uncond-vp.pkl --out=weights/edm-ffhq
  python -m cm_jax train --config=configs/ffhq64_cd.py --teacher=weights/edm-ffhq --workdir=runs/ffhq64/cd \
    --config.accumulation=8
  python -m cm_jax train --config=configs/ffhq64_cd.py:l2 --teacher=weights/edm-ffhq \
    --workdir=runs/ffhq64/cd_l2 --config.accumulation=4
  python -m cm_jax train --config=configs/ffhq64_cd.py:l1 --teacher=weights/edm-ffhq \
    --workdir=runs/ffhq64/cd_l1 --config.accumulation=4
A pod, the same on every host:
  python -m cm_jax train --config=configs/ffhq64_cd.py --teacher=/data/edm-ffhq \
    --workdir=/data/ffhq64/cd

FID: none published. Ours: not yet run.
Compute: 800k steps of 512 images, chosen as for CIFAR-10.
Departures: all of it is CIFAR-10's recipe but the network (UNCONFIRMED for these images).
"""

import cifar10_cd
import ffhq64_edm

VARIANTS = cifar10_cd.VARIANTS


def get_config(variant=""):
  config, theirs = cifar10_cd.get_config(variant), ffhq64_edm.get_config()
  config.data.source, config.data.image_shape = theirs.data.source, theirs.data.image_shape
  config.network = theirs.network  # takes an augmentation label, which gets nothing
  config.network.dropout = 0.0
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  return config
