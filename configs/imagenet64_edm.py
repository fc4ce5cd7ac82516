"""EDM diffusion teacher on ImageNet 64x64 with ADM's network (CM table 2, row "EDM"; EDM's README):
class-conditional, batch 4096, 2,500 M images.

  python -m cm_jax data prepare --source=folder:train --crop=adm --resolution=64 --noexif \
    --out=imagenet64.zip
  python -m cm_jax train --config=configs/imagenet64_edm.py --workdir=runs/imagenet64/edm \
    --config.accumulation=64
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_edm.py --workdir=/data/imagenet64/edm

Paper: FID 2.44, precision 0.71, recall 0.67 with 79 NFE (40 steps of Heun; CM table 2). EDM's own
number for this recipe is 1.36 (its abstract), with 511 NFE: its stochastic sampler, 256 steps with S_churn
40, S_min 0.05, S_max 50, S_noise 1.003. Ours: not yet run.
Compute: about 13 days on 32 A100 (EDM's README).
Departures: this is EDM's recipe, and 2.44 is that of CM's own teacher, which was trained with flips, RAdam
without a warm-up, and several averages (0.999, 0.9999, 0.9999432). Gradients that are not finite skip the
step; EDM replaces them (--config.optimizer.nonfinite=zero). The blocks compute in bfloat16; EDM trained in
float16, with 3 more bits of mantissa and loss scaling. That is not offered: bfloat16 needs no scaling, and
where its rounding matters, at a fine grid, float32 with config.matmul_precision = "tensorfloat32" has
float16's mantissa without its range.

The data are ImageNet's images as ADM crops them, which CM's reference statistics are of. Those of EDM and of
EDM2 are of other downsamplings: an FID against one does not compare with an FID against another (tfds'
imagenet_resized/64x64 is box-filtered without a crop, yet another set; configs/README.md).
"""

from cm_jax.config import default


def get_config():
  config = default()
  config.batch_size = 4096
  config.num_images = 2_500_000_000
  config.data.source = "zip:imagenet64.zip"
  config.data.conditional = True
  config.data.image_shape, config.data.num_classes = (64, 64, 3), 1000
  config.network = {
    "name": "adm",
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
    "dropout": 0.1,
    "dtype": "bfloat16",
  }
  config.optimizer.learning_rate = 1e-4
  config.averages = {"ema": {"name": "half_life", "half_life_images": 50_000_000, "ramp_up": 0.05}}
  config.sampler = {"name": "heun", "num_steps": 40, "clip": True}  # every D, as OpenAI measured
  config.sigmas_by_nfe = {}  # a diffusion model
  return config
