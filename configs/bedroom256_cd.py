"""Consistency distillation on LSUN Bedroom 256x256 (CM tables 2 and 3; OpenAI's `launch.sh`): Heun, N = 40,
target EMA 0.95, batch 2048. ":lpips" (the default) and ":l2" are the distance.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_bedroom256_ema.pt --out=weights/edm-bedroom
  python -m cm_jax train --config=configs/bedroom256_cd.py --teacher=weights/edm-bedroom \
    --workdir=runs/bedroom256/cd --config.accumulation=256
  python -m cm_jax train --config=configs/bedroom256_cd.py:l2 --teacher=weights/edm-bedroom \
    --workdir=runs/bedroom256/cd_l2 --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/bedroom256_cd.py --teacher=/data/edm-bedroom \
    --workdir=/data/bedroom256/cd
A teacher of configs/bedroom256_edm.py does as well (--teacher=runs/bedroom256/edm).

Paper: lpips FID 7.80 with 1 NFE, 5.22 with 2; precision, recall 0.66, 0.34 and 0.68, 0.39 (CM table 2). l2 is
not in the table. Ours: not yet run.
Compute: 600k steps of 2,048 images on 64 A100 (CM table 3; launch.sh has batches of 256).
Departures: bfloat16 for float16. LPIPS at 256 pixels, with average pooling, as OpenAI's. One sampling
average; CM found the weights without one better here (--average=params).
"""

import bedroom256_edm
import imagenet64_cd

from cm_jax.config import variant_of

VARIANTS = ("lpips", "l2")


def get_config(variant=""):
  distance = variant_of(variant, VARIANTS)
  config, theirs = bedroom256_edm.get_config(), imagenet64_cd.get_config(distance)
  config.num_images = 600_000 * 2048
  config.precond = {"name": "boundary", "time_scale": 1000.0}
  config.objective = theirs.objective
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer.learning_rate = 1e-5
  config.averages = theirs.averages
  config.sampler = theirs.sampler
  config.sigmas_by_nfe = {"2": (80.0, 4.366 if distance == "lpips" else 3.52)}  # index 17, 18 of 40
  return config
