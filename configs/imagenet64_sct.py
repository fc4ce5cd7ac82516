"""sCT on ImageNet 64x64 (sCM tables 2 and 4) from the TrigFlow teachers' weights: ":s" is the default, ":m",
":l", ":xl" the others.

  python -m cm_jax train --config=configs/imagenet64_sct.py --init=runs/imagenet64/trigflow_s \
    --workdir=runs/imagenet64/sct_s --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet64_sct.py:m --init=runs/imagenet64/trigflow_m \
    --workdir=runs/imagenet64/sct_m --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_sct.py:l --init=runs/imagenet64/trigflow_l \
    --workdir=runs/imagenet64/sct_l --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_sct.py:xl --init=runs/imagenet64/trigflow_xl \
    --workdir=runs/imagenet64/sct_xl --config.accumulation=128
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_sct.py:xl --init=/data/imagenet64/trigflow_xl \
    --workdir=/data/imagenet64/sct_xl --config.mesh.fsdp=8

Paper: FID with 1 and 2 NFE of s 3.23, 2.93, m 2.25, 1.81, l 2.08, 1.57, xl 2.04, 1.48 (sCM table 4). Ours:
not yet run.
Compute: 400k steps of 2,048 images; the paper does not say how long.
Departures: float32 with TensorFloat-32 products for float16, whose mantissa it has. Where the double
normalisation goes is our reading (configs/imagenet64_trigflow.py). UNCONFIRMED: no warm-up of the learning
rate.
"""

import imagenet64_trigflow

from cm_jax.config import variant_of

RATES = {"s": 1e-4, "m": 9e-5, "l": 8e-5, "xl": 7e-5}  # a hundredth of the teachers'
VARIANTS = imagenet64_trigflow.VARIANTS


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  config = continuous(imagenet64_trigflow.get_config(size), RATES[size])
  config.num_images = 400_000 * 2048
  config.network.dropout = 0.45
  return config


def continuous(config, rate):
  """Return a TrigFlow teacher's config turned into sCT's, but for its length and its dropout."""
  config.objective = {
    "name": "scm",
    "drift": "monte_carlo",
    "levels": {"name": "lognormal", "P_mean": -1.0, "P_std": 1.6},
    "warmup_images": 10_000 * 2048,
  }
  config.network.dropres = 16
  config.network.dtype = "float32"
  config.matmul_precision = "tensorfloat32"
  config.optimizer.learning_rate = rate
  config.optimizer.warmup_images = 0  # UNCONFIRMED
  config.averages = {"ema": {"name": "power", "sigma_rel": 0.05}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 0.982)}  # the angle 1.1
  return config
