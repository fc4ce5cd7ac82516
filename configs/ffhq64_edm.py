"""EDM diffusion teachers on FFHQ 64x64 (EDM table 2, configuration F; the commands of its README): DDPM++
(":vp", the default) or NCSN++ (":ve"), augmented.

  python -m cm_jax data prepare --source=folder:images1024x1024 --crop=edm --resolution=64 --out=ffhq64.zip
  python -m cm_jax train --config=configs/ffhq64_edm.py --workdir=runs/ffhq64/edm --config.accumulation=2
  python -m cm_jax train --config=configs/ffhq64_edm.py:ve --workdir=runs/ffhq64/edm_ve \
    --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/ffhq64_edm.py --workdir=/data/ffhq64/edm

FID of vp 2.39 with 79 NFE (40 steps of Heun; EDM's example.py). That of ve: UNCONFIRMED. Ours: not yet run.
Compute: 200 M images in batches of 256, about four days on 8 V100 (EDM's README).
Departures: gradients that are not finite skip the step; EDM replaces them
(--config.optimizer.nonfinite=zero).
"""

import cifar10_edm

from cm_jax.config import variant_of

VARIANTS = ("vp", "ve")


def get_config(variant=""):
  config = cifar10_edm.get_config(f"uncond-{variant_of(variant, VARIANTS)}")
  config.batch_size = 256
  config.data.source = "zip:ffhq64.zip"
  config.data.image_shape = (64, 64, 3)
  config.data.augment.p = 0.15
  config.network.channel_mult = (1, 2, 2, 2)
  config.network.dropout = 0.05
  config.optimizer.learning_rate = 2e-4
  config.sampler.num_steps = 40
  return config
