"""Consistency distillation on ImageNet 64x64 (CM table 3; OpenAI's `launch.sh`): Heun, LPIPS, N = 40, target
EMA 0.95, batch 2048.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/imagenet64_cd.py --teacher=runs/imagenet64/edm
  --workdir=runs/imagenet64/cd

Paper: FID 6.20 with 1 NFE, 4.70 with 2 (CM table 2). Ours: not yet run.
LPIPS is that of OpenAI's code, with average pooling.
"""

import imagenet64_edm


def get_config():
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
    "distance": {"name": "lpips", "weights": "weights/lpips.safetensors", "pooling": "average"},
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
  config.sigmas_by_nfe = {"2": (80.0, 1.382)}
  return config
