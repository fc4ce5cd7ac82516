"""sCD on CIFAR-10 (sCM table 1, appendix G): as sCT, with the teacher's drift and no dropout. ":edm", the
default, distils an EDM teacher; ":trigflow" is the paper's row, from a TrigFlow teacher with adaptive
double normalisation.

  python -m cm_jax train --config=configs/cifar10_scd.py --teacher=runs/cifar10/edm \
    --workdir=runs/cifar10/scd --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_scd.py:trigflow --teacher=runs/cifar10/trigflow \
    --workdir=runs/cifar10/scd_trigflow --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_scd.py:trigflow --teacher=/data/cifar10/trigflow \
    --workdir=/data/cifar10/scd_trigflow

Paper: trigflow FID 3.66 with 1 NFE, 2.52 with 2 (sCM table 1). edm is in no paper; FastGen reports 3.22 from
such a checkpoint (batch 512, 500k steps). Ours: not yet run.
Compute: the paper does not say how long.
Departures: as configs/cifar10_sct.py. FastGen's 3.22 too was made with N(-1, 1.4^2), a root mean square for
the tangent's norm and another weight 1/sigma_t; edm has none of these, and whether it reaches 3.22 is not
known. The number of steps and the augmentation are UNCONFIRMED.
"""

import cifar10_sct

from cm_jax.config import variant_of

VARIANTS = ("edm", "trigflow")


def get_config(variant=""):
  config = cifar10_sct.get_config(variant_of(variant, VARIANTS))
  config.objective.drift = "teacher"
  config.init.path = "teacher"
  config.network.dropout = 0.0
  return config
