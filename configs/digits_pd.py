"""Progressive distillation of the digits teacher: 16 sampling steps halved to 8, 4, 2 and 1 (Salimans & Ho
2022).

  python -m cm_jax train --config=configs/digits_pd.py --teacher=runs/digits/edm --workdir=runs/digits/pd
  python -m cm_jax sample --workdir=runs/digits/pd --sampler=euler --num_steps=1 --out=pd.png

Every stage's last checkpoint is kept: it is the student of that stage's number of steps. The learning rate
falls to zero in each stage.
"""

import digits_edm


def get_config():
  config = digits_edm.get_config()
  config.num_images = 51_200
  config.objective = {
    "name": "progressive",
    "scales": {"name": "halving", "first": 16},
    "distance": {"name": "l2"},
    "weight": "truncated_snr",
  }
  config.init.path = "teacher"
  config.sampler = {"name": "euler", "num_steps": 1}
  config.optimizer.schedule = "linear"  # to zero in every stage
  # The next teacher is the student's average: a long one would still be the stage's start. jcm takes none.
  config.averages = {"ema": {"name": "constant", "mu": 0.9}}
  return config
