"""Easy consistency tuning on the digits: ECT's continuous pairs, started from the diffusion teacher.

  python -m cm_jax train --config=configs/digits_ect.py --init=runs/digits/edm --workdir=runs/digits/ect

ECT's q = 2, k = 8, b = 1 and eight stages; c = 0.03 instead of 0.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 70_656
  config.precond = {"name": "ect"}
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "continuous",
      "P_mean": -1.1,
      "P_std": 2.0,
      "q": 2.0,
      "stages": {"name": "stages", "num_stages": 8},
    },
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 1.6)}
  return config
