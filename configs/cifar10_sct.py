"""sCT on CIFAR-10 (sCM tables 1 and 3, appendix G): RAdam, tangent warm-up of 10k steps.

":edm", the default, starts from an EDM teacher by the change of variables; ":trigflow" is the paper's row,
from a teacher trained in TrigFlow with adaptive double normalisation; ":batch128" is the paper's comparison
with ECT.

  python -m cm_jax train --config=configs/cifar10_sct.py --init=runs/cifar10/edm --workdir=runs/cifar10/sct \
    --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_sct.py:trigflow --init=runs/cifar10/trigflow \
    --workdir=runs/cifar10/sct_trigflow --config.accumulation=2
  python -m cm_jax convert --input=edm-cifar10-32x32-uncond-vp.pkl --out=weights/edm-cifar10
  python -m cm_jax train --config=configs/cifar10_sct.py:batch128 --init=weights/edm-cifar10 \
    --workdir=runs/cifar10/sct_batch128
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_sct.py:trigflow --init=/data/cifar10/trigflow \
    --workdir=/data/cifar10/sct_trigflow

Paper: trigflow FID 2.85 with 1 NFE, 2.06 with 2 (sCM table 1). batch128: 3.97, 3.51, 3.09 with 1 after 100k,
200k, 400k steps (sCM table 3). edm is in no paper; from such a checkpoint FastGen reports 3.23 (batch 512,
350k steps), with another loss than this (below). Ours: not yet run.
Compute: the paper does not say how long.
Departures: ln sigma ~ N(-1, 1.8^2) is the paper's for a plain DDPM++, N(-1, 1.4^2) for one with adaptive
double normalisation. FastGen's 3.23 was made with N(-1, 1.4^2) in spite of its EDM teacher, a tangent divided
by its root mean square where the paper and this take the norm, and another weight 1/sigma_t: edm has
none of these, and whether it reaches 3.23 is not known. UNCONFIRMED: the number of steps at batch 512 (400k,
the teacher's, is taken), augmentation (none), and that the angle's embedding in edm and batch128 stays
ln(sigma)/4.
"""

import cifar10_edm
import cifar10_trigflow

from cm_jax.config import variant_of

VARIANTS = ("edm", "trigflow", "batch128")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = (cifar10_trigflow if variant == "trigflow" else cifar10_edm).get_config()
  config.batch_size = 128 if variant == "batch128" else 512
  config.num_images = 400_000 * (128 if variant == "batch128" else 512)  # UNCONFIRMED at 512
  config.data.augment = {}  # UNCONFIRMED
  config.objective = {
    "name": "scm",
    "drift": "monte_carlo",
    "levels": {"name": "lognormal", "P_mean": -1.0, "P_std": 1.4 if variant == "trigflow" else 1.8},
    "warmup_images": 10_000 * (128 if variant == "batch128" else 512),
  }
  config.network.dropout = 0.2
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.b2 = 0.99
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "half_life", "half_life_images": 500_000}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 0.982)}  # the angle 1.1
  return config
