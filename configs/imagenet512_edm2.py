"""EDM2 diffusion teachers on the latents of ImageNet 512x512 (EDM2 table 2; the presets
`edm2-img512-{s,m,l,xl,xxl}` of its code). ":s" is the default, ":m", ":l", ":xl", ":xxl" the others.

  python -m cm_jax train --config=configs/imagenet512_edm2.py --workdir=runs/imagenet512/edm2_s \
    --config.accumulation=16
  python -m cm_jax train --config=configs/imagenet512_edm2.py:m --workdir=runs/imagenet512/edm2_m \
    --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet512_edm2.py:l --workdir=runs/imagenet512/edm2_l \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_edm2.py:xl --workdir=runs/imagenet512/edm2_xl \
    --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_edm2.py:xxl --workdir=runs/imagenet512/edm2_xxl \
    --config.accumulation=128
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet512_edm2.py:xxl \
    --workdir=/data/imagenet512/edm2_xxl --config.mesh.fsdp=8

EDM2's code: FID of s 2.56, m 2.25, l 2.06, xl 1.96, xxl 1.91 with 63 NFE (32 steps of Heun) without guidance,
averages of the relative widths 0.130, 0.100, 0.085, 0.085, 0.070. Ours: not yet run. Their FID is of decoded
images: the decoder is not yet built, so samples here are latents.
Compute: 2048, 2048, 1792, 1280, 896 times 2^20 images; at least 32 A100 are recommended (EDM2's README).
Departures: bfloat16 for float16. Their rate decays in batches of 2,048, ours in as many images.

The latents, 64x64x4, are of Stable Diffusion's autoencoder (sd-vae-ft-mse), normalised by stats.json to the
deviation 0.5 (configs/README.md).
"""

import imagenet64_edm2

from cm_jax.config import variant_of

LENGTHS = {"s": 2048, "m": 2048, "l": 1792, "xl": 1280, "xxl": 896}  # in 2^20 images
VARIANTS = ("s", "m", "l", "xl", "xxl")


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  config = imagenet64_edm2.of_size(size)
  config.num_images = LENGTHS[size] << 20
  config.data.source = "latents:imagenet512"
  config.data.image_shape = (64, 64, 4)
  config.objective.levels = {"name": "lognormal", "P_mean": -0.4, "P_std": 1.0}
  config.optimizer.decay_images = 70_000 * 2048
  return config
