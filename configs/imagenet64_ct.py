"""Consistency training on ImageNet 64x64 (CM tables 2 and 3): LPIPS, N(k) from 2 to 200, mu(k) from mu0 =
0.95, batch 2048, 800k steps.

":paper", the default, is the paper's row: from scratch with the learning rate 8e-6. ":code" is the command of
the released model (OpenAI's `launch.sh`): from the EDM teacher, with 1e-4 and mu(k) = exp(s0 ln mu0 / (N(k) -
1)).

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/imagenet64_ct.py --workdir=runs/imagenet64/ct \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_ct.py:code --teacher=runs/imagenet64/edm \
    --workdir=runs/imagenet64/ct_code --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_ct.py:code --teacher=/data/imagenet64/edm \
    --workdir=/data/imagenet64/ct_code

Paper: FID 13.0 with 1 NFE, 11.1 with 2; precision, recall 0.71, 0.47 and 0.69, 0.56 (CM table 2). Ours: not
yet run.
Compute: 800k steps of 2,048 images on 64 A100 (CM table 3).
Departures: float32 with TensorFloat-32 products for float16: at N = 201 bfloat16's rounding is larger than
what the loss compares. Which of the two made the published numbers is UNCONFIRMED.
"""

import imagenet64_cd

from cm_jax.config import variant_of

VARIANTS = ("paper", "code")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = imagenet64_cd.get_config()
  config.objective.drift = "monte_carlo"
  config.objective.solver = "euler"
  config.num_images = 800_000 * 2048
  config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 200}
  config.objective.target = {"name": "curriculum_ema", "s0": 2, "mu0": 0.95, "convention": "paper"}
  config.network.dtype = "float32"
  config.matmul_precision = "tensorfloat32"
  config.init.path = ""
  config.sigmas_by_nfe = {"2": (80.0, 1.913)}  # index 106 of 201
  if variant == "code":
    config.objective.target.convention = "code"
    config.init.path = "teacher"
    config.optimizer.learning_rate = 1e-4
  return config
