"""Consistency training on ImageNet 64x64 (CM table 3): LPIPS, N(k) from 2 to 200, mu(k) from mu0 = 0.95,
batch 2048, 800k steps.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/imagenet64_ct.py --workdir=runs/imagenet64/ct

Paper: FID 13.0 with 1 NFE, 11.1 with 2 (CM table 2). Ours: not yet run. The second level of 2 NFE is 1.913.
  OpenAI's released code starts
from the teacher instead of from scratch: --init=runs/imagenet64/edm.
"""

import imagenet64_cd


def get_config():
  config = imagenet64_cd.get_config()
  config.objective.drift = "monte_carlo"
  config.objective.solver = "euler"
  config.num_images = 800_000 * 2048
  config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 200}
  config.objective.target = {"name": "curriculum_ema", "s0": 2, "mu0": 0.95, "convention": "paper"}
  config.init.path = ""
  return config
