"""Consistency training in isolation on the digits: the Monte Carlo score estimate with iCT's pairs, weight and distance.

  python -m cm_jax train --config=configs/digits_ict.py --workdir=runs/digits/ict

Unlike iCT's CIFAR-10 row: s1 = 160 and c = 0.03, which do better in a thousand steps than 1280 and 0.00054 sqrt(D) = 0.0043.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.precond = {"name": "boundary"}
  num_steps = 1000
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "lognormal",
      "P_mean": -1.1,
      "P_std": 2.0,
      "scales": {"name": "doubling", "s0": 10, "s1": 160, "total_images": num_steps * digits_edm.BATCH_SIZE},
    },
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  digits_edm.set_duration(config, num_steps, learning_rate=1e-3)
  return config
