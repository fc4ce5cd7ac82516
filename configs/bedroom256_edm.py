"""EDM diffusion teacher on LSUN Bedroom 256x256 with OpenAI's UNet (CM table 2, row "EDM"; OpenAI's
`launch.sh`). Their own weights, `edm_bedroom256_ema.pt`, are of this network.

  python -m cm_jax data prepare --source=lmdb:bedroom_train_lmdb --crop=adm --resolution=256 \
    --out=bedroom256.zip
  python -m cm_jax train --config=configs/bedroom256_edm.py --workdir=runs/bedroom256/edm \
    --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/bedroom256_edm.py --workdir=/data/bedroom256/edm

Paper: FID 3.57, precision 0.66, recall 0.45 with 79 NFE (40 steps of Heun; CM table 2). Ours: not yet run.
Compute: 600k steps of 2,048 images (CM appendix C; launch.sh has batches of 256).
Departures: bfloat16 for float16. One sampling average, where OpenAI keeps three (0.999, 0.9999, 0.9999432);
of 25 M images half-life, the last at this batch.
"""

from cm_jax.config import default


def get_config():
  config = default()
  config.batch_size = 2048
  config.num_images = 600_000 * 2048
  config.data.source = "zip:bedroom256.zip"
  config.data.image_shape = (256, 256, 3)
  config.data.flip = True
  config.network = {
    "name": "openai_unet",
    "model_channels": 256,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_resolutions": (8, 16, 32),  # at 32, 16 and 8 pixels
    "num_head_channels": 64,
    "use_scale_shift_norm": False,
    "resblock_updown": True,
    "dropout": 0.1,
    "dtype": "bfloat16",
  }
  config.precond = {"name": "edm", "time_scale": 1000.0}
  config.objective.reduction = "mean"
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9999432189950708}}
  config.sampler = {"name": "heun", "num_steps": 40, "clip": True}  # every D, as OpenAI measured
  config.sigmas_by_nfe = {}  # a diffusion model
  return config
