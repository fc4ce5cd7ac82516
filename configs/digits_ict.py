"""Consistency training in isolation on the digits: the Monte Carlo score estimate with iCT's pairs, weight
and distance.

  python -m cm_jax train --config=configs/digits_ict.py --workdir=runs/digits/ict

Unlike iCT's CIFAR-10 row, because it does better at this size and length: s1 = 320 instead of 1280, c = 0.03
instead of 0.00054 sqrt(D) = 0.0043, and noise levels around the digits' own scale, ln sigma ~ N(-0.4, 1.8^2)
instead of N(-1.1, 2^2).
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 70_400
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "lognormal",
      "P_mean": -0.4,
      "P_std": 1.8,
      "scales": {"name": "doubling", "s0": 10, "s1": 320},
    },
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 1.6)}
  return config
