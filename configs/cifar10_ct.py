"""Consistency training on CIFAR-10 (CM tables 1 and 3): LPIPS. ":adaptive", the default, is the paper's row,
N(k) from 2 to 150 and mu(k) from mu0 = 0.9 (jcm `cifar10_ve_ct_adaptive_lpips`); ":fixed" has N = 120 and
mu = 0.99 throughout (jcm `cifar10_ve_ct_ema`).

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_ct.py --workdir=runs/cifar10/ct --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_ct.py:fixed --workdir=runs/cifar10/ct_fixed \
    --config.accumulation=4
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_ct.py --workdir=/data/cifar10/ct

Paper: FID 8.70, IS 8.49 with 1 NFE, 5.83, 8.85 with 2 (CM table 1), after 740k of the steps (jcm's README).
fixed is in no table. Ours: not yet run.
Compute: 800k steps of 512 images on 8 GPUs (CM table 3).
Departures: mu(k) is that of both official codes, which made the paper's numbers: exp(s0 ln mu0 / (N(k) - 1)),
where the paper divides by N(k).
"""

import cifar10_cd

from cm_jax.config import variant_of

VARIANTS = ("adaptive", "fixed")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = cifar10_cd.get_config()
  config.objective.drift = "monte_carlo"
  config.objective.solver = "euler"
  if variant == "fixed":
    config.objective.pairs.scales = {"name": "constant", "value": 120}
    config.objective.target = {"name": "ema", "mu": 0.99}
  else:
    config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 150}
    config.objective.target = {"name": "curriculum_ema", "s0": 2, "mu0": 0.9, "convention": "code"}
  config.init.path = ""
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  return config
