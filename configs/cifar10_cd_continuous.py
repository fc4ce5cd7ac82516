"""Consistency distillation in continuous time on CIFAR-10 (CM appendix B, figure 7; jcm `launch.sh`). ":l2",
the default, and ":l1" have no stop-gradient (theorems 3 and 4), ":l2-stopgrad" and ":lpips-stopgrad" have
(theorem 5).

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_cd_continuous.py --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/cd_continuous --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_cd_continuous.py:l1 --teacher=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/cd_continuous_l1 --config.accumulation=4
  python -m cm_jax train --config=configs/cifar10_cd_continuous.py:l2-stopgrad \
    --teacher=runs/cifar10/edm_ncsnpp --workdir=runs/cifar10/cd_continuous_l2_sg --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_cd_continuous.py:lpips-stopgrad \
    --teacher=runs/cifar10/edm_ncsnpp --workdir=runs/cifar10/cd_continuous_lpips_sg --config.accumulation=4
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_cd_continuous.py \
    --teacher=/data/cifar10/edm_ncsnpp --workdir=/data/cifar10/cd_continuous

Paper: FID in figure 7 only, no table. Ours: not yet run.
Compute: 400k steps of 512 images (jcm's published checkpoints); the paper does not say how long.
Departures: ":l2" minimises the norm ||v||, as jcm's code does (pseudo-Huber with c = 0), where theorem 3 has
||v||^2. Dropout of l2: 0.13 as in the paper; jcm's launch.sh has 0.3. That of the stop-gradient rows is
UNCONFIRMED: 0.3 is the code's default, which launch.sh leaves; the paper's table 3 has 0 where nothing else
is said.
"""

import cifar10_cd

from cm_jax.config import variant_of

VARIANTS = ("l2", "l1", "l2-stopgrad", "lpips-stopgrad")
NORM = {"name": "pseudo_huber", "c": 0.0}  # jcm's "l2" without stop-gradient


def get_config(variant=""):
  distance, _, stop_gradient = variant_of(variant, VARIANTS).partition("-")
  config = cifar10_cd.get_config(distance)
  config.objective = {
    "name": "continuous",
    "drift": "teacher",
    "distance": config.objective.distance.to_dict() if stop_gradient or distance == "l1" else NORM,
    "stop_gradient": bool(stop_gradient),
    "levels": "karras",
    "weight": "uniform",
  }
  # 0.3 is UNCONFIRMED with stop-gradient
  config.network.dropout = 0.13 if not stop_gradient and distance == "l2" else 0.3
  config.optimizer.learning_rate = 5e-6 if stop_gradient else 1e-3
  config.sigmas_by_nfe = {}  # not published: search-steps finds it
  config.num_images = 400_000 * 512
  return config
