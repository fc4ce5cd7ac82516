"""Consistency distillation of the digits teacher with the Heun solver (CM Alg. 2, CD).

  python -m cm_jax train --config=configs/digits_cd.py --teacher=runs/digits/edm --workdir=runs/digits/cd

Unlike the paper's CIFAR-10 row, because it does better at this size and length: N = 10 instead of 18,
pseudo-Huber distance, weight 1 / (t - r), theta- = sg(theta).
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 48_000
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "teacher",
    "solver": "heun",
    "pairs": {"name": "karras", "scales": {"name": "constant", "value": 10}},
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.init.path = "teacher"
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 3.0)}
  return config
