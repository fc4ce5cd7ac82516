"""Improved consistency training on CIFAR-10 (iCT, sections 3 and 4; the numbers by sCM table 1): lognormal
pairs, doubling N(k), pseudo-Huber, 1/(t - r), no target average. ":deep" has 8 blocks a resolution instead
of 4.

  python -m cm_jax train --config=configs/cifar10_ict.py --workdir=runs/cifar10/ict --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_ict.py:deep --workdir=runs/cifar10/ict_deep \
    --config.accumulation=8
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_ict.py:deep --workdir=/data/cifar10/ict_deep

Paper: FID 2.83 with 1 NFE, 2.46 with 2; deep 2.51, 2.24 (sCM table 1). Ours: not yet run. There is no
official code; public reimplementations report FID 10 to 14.
Compute: 400k steps of 1,024 images; the paper does not say how long.
Departures: none known; the paper's text was not at hand, and its values here are by way of others' (ECT's
README, sCM), the flips by CM's custom.
"""

import cifar10_edm_ncsnpp

from cm_jax.config import variant_of

VARIANTS = ("standard", "deep")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = cifar10_edm_ncsnpp.get_config()
  config.batch_size = 1024
  config.num_images = 400_000 * 1024
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "lognormal",
      "P_mean": -1.1,
      "P_std": 2.0,
      "scales": {"name": "doubling", "s0": 10, "s1": 1280},
    },
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": "stop_gradient",
  }
  config.network.fourier_scale = 0.02
  config.network.dropout = 0.3
  if variant == "deep":
    config.network.num_blocks = 8
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.99993}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 0.821)}
  return config
