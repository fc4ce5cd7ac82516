"""Consistency distillation on CIFAR-10 from the teacher that jcm published, `edm_cifar10_ema`: the network is
the teacher's own, jcm's NCSN++. All else is configs/cifar10_cd.py (CM tables 1 and 3), with its distances.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_cifar10_ema --out=weights/edm-cifar10-jcm
  python -m cm_jax train --config=configs/cifar10_cd_jcm.py --teacher=weights/edm-cifar10-jcm \
    --workdir=runs/cifar10/cd_jcm --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_cd_jcm.py:l2 --teacher=weights/edm-cifar10-jcm \
    --workdir=runs/cifar10/cd_jcm_l2 --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_cd_jcm.py:l1 --teacher=weights/edm-cifar10-jcm \
    --workdir=runs/cifar10/cd_jcm_l1 --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_cd_jcm.py --teacher=/data/edm-cifar10-jcm \
    --workdir=/data/cifar10/cd_jcm

Paper: lpips FID 3.55 with 1 NFE, 2.93 with 2 (CM table 1). l2 and l1 are in no table. Ours: not yet run.
Compute: 800k steps of 512 images on 8 GPUs (CM table 3).
Departures: as configs/cifar10_cd.py, but for the network.
"""

import cifar10_cd

VARIANTS = cifar10_cd.VARIANTS
TEACHER_NETWORK = {"name": "jcm_ncsnpp"}  # of that checkpoint, for `plan` without --teacher


def get_config(variant=""):
  config = cifar10_cd.get_config(variant)
  config.network = {"name": "teacher"}  # without dropout, as the row has it
  return config
