"""Consistency training on LSUN Bedroom 256x256 (CM tables 2 and 3): LPIPS, N(k) from 2 to 150, mu(k) from mu0
= 0.95.

":paper", the default, is the paper's row: from scratch with the learning rate 1e-5, batch 2048. ":code" is
the command of the released model (OpenAI's `launch.sh`): from the EDM teacher, with 5e-5, batch 256 and mu(k)
= exp(s0 ln mu0 / (N(k) - 1)).

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_bedroom256_ema.pt --out=weights/edm-bedroom
  python -m cm_jax train --config=configs/bedroom256_ct.py --workdir=runs/bedroom256/ct \
    --config.accumulation=512
  python -m cm_jax train --config=configs/bedroom256_ct.py:code --teacher=weights/edm-bedroom \
    --workdir=runs/bedroom256/ct_code --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/bedroom256_ct.py --workdir=/data/bedroom256/ct

Paper: FID 16.0 with 1 NFE, 7.85 with 2; precision, recall 0.60, 0.17 and 0.68, 0.33 (CM table 2). Ours: not
yet run.
Compute: 1,000k steps of 2,048 images on 64 A100 (CM table 3).
Departures: float32 with TensorFloat-32 products for float16: at N = 151 bfloat16's rounding is larger than
what the loss compares. Which of the two made the published numbers is UNCONFIRMED.
"""

import bedroom256_cd

from cm_jax.config import variant_of

VARIANTS = ("paper", "code")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = bedroom256_cd.get_config()
  config.objective.drift = "monte_carlo"
  config.objective.solver = "euler"
  config.num_images = 1_000_000 * 2048
  config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 150}
  config.objective.target = {"name": "curriculum_ema", "s0": 2, "mu0": 0.95, "convention": "paper"}
  config.network.dtype = "float32"
  config.matmul_precision = "tensorfloat32"
  config.init.path = ""
  config.sigmas_by_nfe = {"2": (80.0, 3.991)}  # index 67 of 151
  if variant == "code":
    config.batch_size = 256
    config.num_images = 1_000_000 * 256
    config.objective.target.convention = "code"
    config.init.path = "teacher"
    config.optimizer.learning_rate = 5e-5
  return config
