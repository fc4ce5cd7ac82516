"""Improved consistency training on ImageNet 64x64 (iCT, sections 3 and 4; the numbers by sCM table 1): ADM
without AdaGN, which diverges here, and dropout at 16 pixels and below. ":deep" has twice the blocks a
resolution.

  python -m cm_jax train --config=configs/imagenet64_ict.py --workdir=runs/imagenet64/ict \
    --config.accumulation=128
  python -m cm_jax train --config=configs/imagenet64_ict.py:deep --workdir=runs/imagenet64/ict_deep \
    --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_ict.py:deep --workdir=/data/imagenet64/ict_deep

Paper: FID 4.02 with 1 NFE, 3.20 with 2; deep 3.25, 2.77 (sCM table 1). Ours: not yet run. There is no
official code.
Compute: 800k steps of 4,096 images (UNCONFIRMED); the paper does not say how long.
Departures: float32 for float16: at N = 1281 even TensorFloat-32's rounding is nearly what the loss compares.
The paper's text was not at hand: batch, length, the value of dropout, the average, the learning rate, the
flips and deep's 6 blocks are UNCONFIRMED.
"""

import cifar10_ict
import imagenet64_edm

from cm_jax.config import variant_of

VARIANTS = ("standard", "deep")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config, theirs = imagenet64_edm.get_config(), cifar10_ict.get_config()
  config.batch_size = 4096  # UNCONFIRMED
  config.num_images = 800_000 * 4096  # UNCONFIRMED
  config.data.flip = True  # UNCONFIRMED
  config.precond = theirs.precond
  config.objective = theirs.objective
  config.objective.distance.c = 0.06  # 0.00054 sqrt(12288)
  config.network.modulation = "shift"  # no AdaGN
  config.network.dropout = 0.2  # UNCONFIRMED
  config.network.dropres = 16
  if variant == "deep":
    config.network.num_blocks = 6  # UNCONFIRMED
  config.network.dtype = "float32"
  config.optimizer = theirs.optimizer
  config.averages = {"ema": {"name": "constant", "mu": 0.99997}}  # UNCONFIRMED
  config.sampler = theirs.sampler
  config.sigmas_by_nfe = {"2": (80.0, 1.526)}
  return config
