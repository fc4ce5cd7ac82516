"""sCD on the digits: continuous-time consistency distillation made stable, in TrigFlow (sCM Alg. 1), from and
of the EDM teacher.

  python -m cm_jax train --config=configs/digits_scd.py --teacher=runs/digits/edm --workdir=runs/digits/scd

Unlike the paper's CIFAR-10 row: ln sigma ~ N(0, 2^2) instead of N(-1, 1.4^2), with which sigma = 80 is all
but never trained at this length; Adam with a cosine.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 51_200
  config.objective = {
    "name": "scm",
    "drift": "teacher",
    "levels": {"name": "lognormal", "P_mean": 0.0, "P_std": 2.0},
    "warmup_images": 12_800,
  }
  config.init.path = "teacher"
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 1.6)}
  config.optimizer.learning_rate = 1e-3
  return config
