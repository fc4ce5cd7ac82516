"""Consistency training on CIFAR-10 (CM table 3; jcm `cifar10_ve_ct_adaptive_lpips`): LPIPS, N(k) from 2 to
150, mu(k) from mu0 = 0.9.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_ct.py --workdir=runs/cifar10/ct

mu(k) is that of both official codes, which made the paper's numbers: exp(s0 ln mu0 / (N(k) - 1)).

Paper: FID 8.70 with 1 NFE, 5.83 with 2 (CM table 1). Ours: not yet run.
"""

import cifar10_cd


def get_config():
  config = cifar10_cd.get_config()
  config.objective.drift = "monte_carlo"
  config.objective.solver = "euler"
  config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 150}
  config.objective.target = {"name": "curriculum_ema", "s0": 2, "mu0": 0.9, "convention": "code"}
  config.init.path = ""
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  return config
