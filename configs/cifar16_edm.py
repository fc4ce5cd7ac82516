"""EDM diffusion teacher on CIFAR-10 made 16x16, with classes: a real run on real colour images that two CPU
cores manage, and the start of the other cifar16 configs. No paper's row.

  python -m cm_jax data prepare --source=folder:train --crop=center --resolution=16 \
    --out=runs/cifar16/train16.zip
  python -m cm_jax train --config=configs/cifar16_edm.py --workdir=runs/cifar16/edm

All of it, from the archive of images to pictures and tables: bash launch/cifar16.sh.
EDM's levels, preconditioning and weight; batch, learning rate and average scaled to 1.5 M images, 30 times
each. DDPM++ of 1.16 M parameters: 32, 64, 64 channels at 16, 8, 4 pixels. The third level adds two thirds of
the parameters and no time that could be measured: most is spent on the 256 positions of the first.
"""

from cm_jax.config import default

DATA = "zip:runs/cifar16/train16.zip"


def get_config():
  config = default()
  config.batch_size = 128
  config.num_images = 1_500_000
  config.data.source = DATA
  config.data.image_shape = (16, 16, 3)
  config.data.num_classes = 10
  config.data.conditional = True
  config.data.flip = True
  config.network.model_channels = 32
  config.network.channel_mult = (1, 2, 2)
  config.network.channel_mult_emb = 2
  config.network.num_blocks = 1
  config.network.attn_resolutions = ()  # the lowest level of the decoder always has one attention
  config.network.dropout = 0.0
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"  # to zero at the end of the run
  config.optimizer.warmup_images = 50_000
  config.averages = {"ema": {"name": "half_life", "half_life_images": 50_000, "ramp_up": 0.05}}
  config.run.sample_every = 2_000
  config.run.checkpoint_every = 200
  config.run.keep_checkpoints = 1
  return config
