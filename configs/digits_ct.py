"""Consistency training of the original paper on the digits: uniform Karras pairs whose N(k) grows (CM Alg. 3,
CT).

  python -m cm_jax train --config=configs/digits_ct.py --init=runs/digits/edm --workdir=runs/digits/ct

Started from the diffusion teacher, as OpenAI's code does (`cm_train.py`; the paper starts from scratch).
Unlike the paper's CIFAR-10 row, because at this size and length that row stays grey noise: s0, s1 = 10, 30
instead of 2, 150, pseudo-Huber instead of LPIPS, weight 1 / (t - r), theta- = sg(theta) instead of mu0 = 0.9.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 51_200
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "karras",
      "scales": {"name": "progressive", "s0": 10, "s1": 30},
    },
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 1.6)}
  config.optimizer.learning_rate = 1e-3
  return config
