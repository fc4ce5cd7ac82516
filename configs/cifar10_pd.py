"""Progressive distillation on CIFAR-10 (CM's baseline; jcm `cifar10_ve_progressive_distillation`): 4096 steps
halved to 1.

  python -m cm_jax train --config=configs/cifar10_pd.py --teacher=runs/cifar10/edm_ncsnpp
  --workdir=runs/cifar10/pd

Each student and its average start from the teacher's average (jcm: from its raw parameters).

Paper: FID 8.34 with 1 NFE, 5.58 with 2 (CM table 1). Ours: not yet run.
"""

import cifar10_edm_ncsnpp


def get_config():
  config = cifar10_edm_ncsnpp.get_config()
  config.num_images = 750_000 * 512  # 11 stages of 50k steps and, as jcm, two of 100k
  config.objective = {
    "name": "progressive",
    "scales": {
      "name": "halving",
      "first": 4096,
      "last_factor": 2.0,
    },
    "distance": {"name": "l2"},
    "weight": "truncated_snr",
  }
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_images = 0
  config.optimizer.schedule = "linear"  # to zero in every stage
  config.optimizer.clip_norm = 1.0
  config.averages = {"ema": {"name": "constant", "mu": 0.0}}  # none
  config.sampler = {"name": "euler", "num_steps": 1}
  return config
