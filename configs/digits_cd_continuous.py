"""Consistency distillation of the digits teacher in continuous time, with stop-gradient (CM appendix B,
theorem 5).

  python -m cm_jax train --config=configs/digits_cd_continuous.py --teacher=runs/digits/edm
  --workdir=runs/digits/cd_continuous

The paper's distances are l2 and LPIPS; here the plain norm, whose pull has the same length at every noise
level.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 51_200
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "continuous",
    "drift": "teacher",
    "distance": {"name": "l2"},
    "stop_gradient": True,
    "levels": {"name": "lognormal", "P_mean": 0.0, "P_std": 2.0},
    "weight": "trigflow",
  }
  config.init.path = "teacher"
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 1.6)}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.clip_norm = 1.0
  return config
