"""Consistency distillation of the cifar16 teacher with the Heun solver (CM Alg. 2, CD). No paper's row.

  python -m cm_jax train --config=configs/cifar16_cd.py --teacher=runs/cifar16/edm --workdir=runs/cifar16/cd

Unlike the paper's CIFAR-10 row, as in digits_cd.py: pseudo-Huber distance, weight 1 / (t - r), Adam with a
cosine. The length, the learning rate and the average are those of all three students.
"""

import cifar16_edm


def get_config():
  config = cifar16_edm.get_config()
  config.num_images = 768_000  # 6,000 steps
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "teacher",
    "solver": "heun",
    "pairs": {"name": "karras", "scales": {"name": "constant", "value": 18}},
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.init.path = "teacher"
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 0.8)}
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_images = 10_000
  return config
