"""Consistency distillation on ImageNet 64x64 (CM tables 2 and 3; OpenAI's `launch.sh`): Heun, N = 40, target
EMA 0.95, batch 2048. ":lpips" (the default) and ":l2" are the distance.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/imagenet64_cd.py --teacher=runs/imagenet64/edm \
    --workdir=runs/imagenet64/cd --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_cd.py:l2 --teacher=runs/imagenet64/edm \
    --workdir=runs/imagenet64/cd_l2 --config.accumulation=32
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_cd.py --teacher=/data/imagenet64/edm \
    --workdir=/data/imagenet64/cd

Paper: lpips FID 6.20 with 1 NFE, 4.70 with 2; precision, recall 0.68, 0.63 and 0.69, 0.64 (CM table 2). l2 is
not in the table. Ours: not yet run.
Compute: 600k steps of 2,048 images on 64 A100 (CM table 3).
Departures: bfloat16 for float16 (configs/imagenet64_edm.py). LPIPS is that of OpenAI's code, with average
pooling. One sampling average, where OpenAI keeps three (0.999, 0.9999, 0.9999432).
"""

import imagenet64_edm

from cm_jax.config import variant_of

LPIPS = {"name": "lpips", "weights": "weights/lpips.safetensors", "pooling": "average"}
VARIANTS = ("lpips", "l2")


def get_config(variant=""):
  distance = variant_of(variant, VARIANTS)
  config = imagenet64_edm.get_config()
  config.batch_size = 2048
  config.num_images = 600_000 * 2048
  config.data.flip = True
  config.precond = {"name": "boundary"}
  config.objective = {
    "name": "consistency",
    "drift": "teacher",
    "solver": "heun",
    "pairs": {"name": "karras", "scales": {"name": "constant", "value": 40}},
    "distance": LPIPS if distance == "lpips" else {"name": distance},
    "weight": "uniform",
    "target": {"name": "ema", "mu": 0.95},
  }
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 8e-6
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.999943}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,)}
  config.sigmas_by_nfe = {"2": (80.0, 1.382)}  # index 22 of 40, of both distances
  return config
