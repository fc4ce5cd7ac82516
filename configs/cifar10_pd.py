"""Progressive distillation on CIFAR-10 (CM table 1, row "PD"; jcm `cifar10_ve_progressive_distillation`):
4096 steps halved to 1.

  python -m cm_jax train --config=configs/cifar10_pd.py --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/pd --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_pd.py --teacher=/data/cifar10/edm_ncsnpp \
    --workdir=/data/cifar10/pd

Paper: FID 8.34, IS 8.69 with 1 NFE, 5.58, 9.05 with 2 (CM table 1). Ours: not yet run.
Compute: 750k steps of 512 images: 11 stages of 50k and two of 100k.
Departures: each student and its average start from the teacher's average (jcm: from its raw parameters).
Two-step samples are those of the student of the stage M = 2, with Euler: there are no levels to search.
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
  config.sigmas_by_nfe = {}  # its own grid
  return config
