"""TrigFlow diffusion teacher on CIFAR-10 (sCM section 4 and appendix G): DDPM++ with adaptive double
normalisation, which is told TrigFlow's angle. The start of configs/cifar10_sct.py:trigflow and
cifar10_scd.py:trigflow.

  python -m cm_jax train --config=configs/cifar10_trigflow.py --workdir=runs/cifar10/trigflow \
    --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_trigflow.py --workdir=/data/cifar10/trigflow

Paper: FID 2.15 with 35 NFE (18 steps; sCM appendix G). Ours: not yet run.
Compute: 400k steps of 512 images; the paper does not say how long.
Departures: the loss is sCM's, ||sigma_d F - v||^2, up to 1/sigma_d^2; its learned weight is EDM2's head,
whose weight is normalised in networks of EDM2 only. UNCONFIRMED, EDM's being taken: the noise levels, the
augmentation, the warm-up and the moments' decays.
"""

import cifar10_edm


def get_config():
  config = cifar10_edm.get_config()
  config.precond = {"name": "trigflow"}
  config.network.modulation = "double"
  config.objective = {
    "name": "denoising",
    "levels": {"name": "lognormal", "P_mean": -1.2, "P_std": 1.2},  # UNCONFIRMED
    "weight": "karras",
    "uncertainty": True,
    "reduction": "mean",
  }
  config.num_images = 400_000 * 512
  return config
