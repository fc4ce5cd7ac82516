"""Consistency distillation on CIFAR-10 (CM tables 1 and 3; jcm `cifar10_ve_cd_{lpips,l2,l1}`): Heun on the
teacher, N = 18, mu = 0. ":lpips" (the default), ":l2", ":l1" are the distance.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_cd.py --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/cd --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_cd.py:l2 --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/cd_l2 --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_cd.py:l1 --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/cd_l1 --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_cd.py --teacher=/data/cifar10/edm_ncsnpp \
    --workdir=/data/cifar10/cd

Paper: lpips FID 3.55, IS 9.48 with 1 NFE, 2.93, 9.75 with 2 (CM table 1). l2 and l1 are in no table of it.
Ours: not yet run.
Compute: 800k steps of 512 images on 8 GPUs (CM table 3).
Departures: the student and its average both start from the teacher's average; jcm's student starts from the
teacher's raw parameters, and only its average from the average.
"""

import cifar10_edm_ncsnpp

from cm_jax.config import variant_of

LPIPS = {"name": "lpips", "weights": "weights/lpips.safetensors"}
VARIANTS = ("lpips", "l2", "l1")


def get_config(variant=""):
  distance = variant_of(variant, VARIANTS)
  config = cifar10_edm_ncsnpp.get_config()
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "teacher",
    "solver": "heun",
    "pairs": {"name": "karras", "scales": {"name": "constant", "value": 18}},
    "distance": LPIPS if distance == "lpips" else {"name": distance},
    "weight": "uniform",
    "target": {"name": "stop_gradient"},  # mu = 0
  }
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 2e-4 if distance == "l1" else 4e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9999}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  # index 11 of 18; of l2 and l1 it is not published: search-steps finds it
  config.sigmas_by_nfe = {"2": (80.0, 0.585)} if distance == "lpips" else {}
  config.num_images = 800_000 * 512
  return config
