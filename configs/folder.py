"""Your own images, on a laptop: an EDM diffusion model of images of any kind and size; ":ect" makes of that
model a consistency model, which draws in one step (or `--sigmas=80,1.6`) and edits.

  python -m cm_jax train --config=configs/folder.py --config.data.source=folder:/photos --workdir=runs/photos
  python -m cm_jax train --config=configs/folder.py:ect --init=runs/photos \
    --config.data.source=folder:/photos --workdir=runs/photos_ect

Images are turned as their EXIF data asks, cropped to the largest square in the centre and resized to
--config.data.resolution=64 (32: faster by far; 128: overnight on a GPU). Class folders become classes with
--config.data.conditional=True; then `sample --label=cat`. The network follows the resolution: about 2 million
parameters to 32 pixels, 8 at 64, 20 at 128; that of ":ect" is its start's. The source may be a zip or any
other too; both runs take the same --config.data. ECT as configs/digits_ect.py has it.
"""

from cm_jax.config import default, variant_of

VARIANTS = ("edm", "ect")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = default()
  config.batch_size = 32
  config.num_images = 640_000  # 20,000 steps; longer is better: --config.num_images=N
  config.data.source = "folder:/path/to/your/images"
  config.data.crop = "center"
  config.data.resolution = 64
  config.data.alpha = "white"
  config.data.flip = False  # True where left and right do not matter: no letters, no digits
  config.network = {"name": "small_unet", "dropout": 0.05}
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_images = 10_000
  config.averages = {"ema": {"name": "half_life", "half_life_images": 20_000, "ramp_up": 0.05}}
  config.run.log_every = 50
  config.run.sample_every = 1_000
  config.run.num_samples = 16
  config.run.checkpoint_every = 1_000
  if variant == "ect":
    import digits_ect  # here: a copy of this file elsewhere still trains the diffusion model

    ect = digits_ect.get_config()
    config.network = {"name": "init"}
    config.precond, config.objective = ect.precond, ect.objective
    config.sampler, config.sigmas_by_nfe = ect.sampler, ect.sigmas_by_nfe
    config.optimizer.warmup_images = 0
  return config
