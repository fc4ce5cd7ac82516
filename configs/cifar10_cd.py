"""Consistency distillation on CIFAR-10 (CM table 3; jcm `cifar10_ve_cd_lpips`): Heun on the teacher, LPIPS, N
= 18, mu = 0.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_cd.py --teacher=runs/cifar10/edm_ncsnpp
  --workdir=runs/cifar10/cd

Paper: FID 3.55 with 1 NFE, 2.93 with 2 (CM table 1). Ours: not yet run.
The student and its average both start from the teacher's average; jcm's student starts from the teacher's raw
parameters, and only its average from the average.
"""

import cifar10_edm_ncsnpp

LPIPS = {"name": "lpips", "weights": "weights/lpips.safetensors"}


def get_config():
  config = cifar10_edm_ncsnpp.get_config()
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "teacher",
    "solver": "heun",
    "pairs": {"name": "karras", "scales": {"name": "constant", "value": 18}},
    "distance": LPIPS,
    "weight": "uniform",
    "target": {"name": "stop_gradient"},  # mu = 0
  }
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 4e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9999}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 0.585)}
  config.num_images = 800_000 * 512
  return config
