"""Easy consistency tuning on ImageNet 64x64 (ECT; `run_imgnet_ecm.sh` of its branch imgnet): EDM2's networks
tuned with batch 128 for 100k steps. ":s" is the default, ":m", ":l", ":xl" the others; ":xl-1024" is the
published checkpoint's batch of 1,024.

  python -m cm_jax convert --input=edm2-img64-s-1073741-0.075.pkl --out=weights/edm2-img64-s
  python -m cm_jax convert --input=edm2-img64-m-2147483-0.060.pkl --out=weights/edm2-img64-m
  python -m cm_jax convert --input=edm2-img64-l-1073741-0.040.pkl --out=weights/edm2-img64-l
  python -m cm_jax convert --input=edm2-img64-xl-0671088-0.040.pkl --out=weights/edm2-img64-xl
  python -m cm_jax train --config=configs/imagenet64_ect.py --init=weights/edm2-img64-s \
    --workdir=runs/imagenet64/ect_s --config.accumulation=2
  python -m cm_jax train --config=configs/imagenet64_ect.py:m --init=weights/edm2-img64-m \
    --workdir=runs/imagenet64/ect_m --config.accumulation=4
  python -m cm_jax train --config=configs/imagenet64_ect.py:l --init=weights/edm2-img64-l \
    --workdir=runs/imagenet64/ect_l --config.accumulation=4
  python -m cm_jax train --config=configs/imagenet64_ect.py:xl --init=weights/edm2-img64-xl \
    --workdir=runs/imagenet64/ect_xl --config.accumulation=8
  python -m cm_jax train --config=configs/imagenet64_ect.py:xl-1024 --init=weights/edm2-img64-xl \
    --workdir=runs/imagenet64/ect_xl_1024 --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_ect.py:xl-1024 --init=/data/edm2-img64-xl \
    --workdir=/data/imagenet64/ect_xl --config.mesh.fsdp=8

Paper: FID of s 4.05 with 1 NFE (as FastGen quotes it); xl-1024 2.49 with 1, 1.67 with 2 (sCM table 1). Those
of m, l and of xl with batch 128: UNCONFIRMED. Ours: not yet run.
Compute: the paper does not say how long.
Departures: float32 with TensorFloat-32 products, as theirs, although in the last stage their rounding is
nearly what the loss compares (--config.matmul_precision=highest). Which average their FID is of is
UNCONFIRMED: "ema" is their 0.9999, "power" EDM2's. Of xl-1024 the length of a stage (a quarter of the run),
the step at which the decay of the learning rate begins (2,000) and the rate itself (xl's at batch 128) are
UNCONFIRMED.
"""

import imagenet64_edm2

from cm_jax.config import variant_of

# Learning rate, dropout
SIZES = {"s": (1e-3, 0.4), "m": (9e-4, 0.5), "l": (8e-4, 0.5), "xl": (7e-4, 0.5)}
VARIANTS = ("s", "m", "l", "xl", "xl-1024")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  size = variant.partition("-")[0]
  rate, dropout = SIZES[size]
  config = imagenet64_edm2.of_size(size)
  config.batch_size = 1024 if variant == "xl-1024" else 128
  config.num_images = 100_000 * (1024 if variant == "xl-1024" else 128)
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "continuous",
      "P_mean": -0.8,
      "P_std": 1.6,
      "q": 4.0,
      "stages": {"name": "stages", "num_stages": 4},
    },
    "distance": {"name": "pseudo_huber", "c": 0.06},
    "weight": "karras",
    "target": "stop_gradient",
  }
  config.network.dropout = dropout
  config.network.dropres = 16
  config.network.dtype = "float32"
  config.matmul_precision = "tensorfloat32"
  config.optimizer.learning_rate = rate
  config.optimizer.decay_images = 2_000 * (1024 if variant == "xl-1024" else 128)
  config.optimizer.warmup_images = 0
  config.averages = {
    "ema": {"name": "constant", "mu": 0.9999},
    "power": {"name": "power", "sigma_rel": 0.05},
    "power_wide": {"name": "power", "sigma_rel": 0.1},
  }
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 1.526)}
  config.run.snapshot_every = 0
  return config
