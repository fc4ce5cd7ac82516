"""EDM2 diffusion teachers on ImageNet 64x64 (EDM2 table 3; the presets `edm2-img64-{s,m,l,xl}` of its code).
":s" is the default, ":m", ":l", ":xl" the others.

  python -m cm_jax train --config=configs/imagenet64_edm2.py --workdir=runs/imagenet64/edm2_s \
    --config.accumulation=16
  python -m cm_jax train --config=configs/imagenet64_edm2.py:m --workdir=runs/imagenet64/edm2_m \
    --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet64_edm2.py:l --workdir=runs/imagenet64/edm2_l \
    --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet64_edm2.py:xl --workdir=runs/imagenet64/edm2_xl \
    --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_edm2.py:xl --workdir=/data/imagenet64/edm2_xl \
    --config.mesh.fsdp=8
The averages they measured, made afterwards:
  python -m cm_jax ema --workdir=runs/imagenet64/edm2_s --sigma-rel=0.075 --out=weights/edm2-img64-s

EDM2's code: FID of s 1.58, m 1.43, l 1.33, xl 1.33 with 63 NFE (32 steps of Heun), averages of the relative
widths 0.075, 0.060, 0.040, 0.040. Ours: not yet run.
Compute: 1024, 2048, 1024, 640 times 2^20 images; at least 32 A100 are recommended (EDM2's README).
Departures: bfloat16 for float16. Their rate decays in batches of 2,048, ours in as many images.
"""

from cm_jax.config import default, variant_of

# Width, learning rate, dropout, length in 2^20 images: S to XXL
SIZES = {
  "s": (192, 1e-2, 0.0, 1024),
  "m": (256, 9e-3, 0.1, 2048),
  "l": (320, 8e-3, 0.1, 1024),
  "xl": (384, 7e-3, 0.1, 640),
  "xxl": (448, 6.5e-3, 0.1, 0),  # of ImageNet 512 only
}
VARIANTS = ("s", "m", "l", "xl")


def get_config(variant=""):
  return of_size(variant_of(variant, VARIANTS))


def of_size(size):
  """Return the config of a size of the network: what sizes have in common, and what not, once."""
  channels, rate, dropout, length = SIZES[size]
  config = default()
  config.batch_size = 2048
  config.num_images = length << 20
  config.data.source = "zip:imagenet64.zip"
  config.data.conditional = True
  config.data.image_shape, config.data.num_classes = (64, 64, 3), 1000
  config.network = {"name": "edm2", "model_channels": channels, "dropout": dropout, "dtype": "bfloat16"}
  config.objective = {
    "name": "denoising",
    "levels": {"name": "lognormal", "P_mean": -0.8, "P_std": 1.6},
    "weight": "karras",
    "uncertainty": True,
    "reduction": "sum",
  }
  config.optimizer.learning_rate = rate
  config.optimizer.b2 = 0.99
  config.optimizer.schedule = "inverse_sqrt"
  config.optimizer.decay_images = 35_000 * 2048
  config.optimizer.warmup_images = 10_000_000
  config.optimizer.nonfinite = "zero_inf"
  config.averages = {
    "ema": {"name": "power", "sigma_rel": 0.05},
    "ema_wide": {"name": "power", "sigma_rel": 0.1},
  }
  config.sampler = {"name": "heun", "num_steps": 32}
  config.sigmas_by_nfe = {}  # a diffusion model
  config.run.snapshot_every = 4096  # 8 x 2^20 images, for `cm_jax ema`
  return config
