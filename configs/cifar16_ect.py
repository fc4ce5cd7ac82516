"""Easy consistency tuning from the cifar16 teacher: ECT's continuous pairs. No paper's row.

  python -m cm_jax train --config=configs/cifar16_ect.py --init=runs/cifar16/edm --workdir=runs/cifar16/ect

ECT's q = 2, k = 8, b = 1 and eight stages; c = 0.03 instead of 0. Length, learning rate and average are those
of cifar16_cd.py.
"""

import cifar16_cd


def get_config():
  config = cifar16_cd.get_config()
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
  config.init.path = ""
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  return config
