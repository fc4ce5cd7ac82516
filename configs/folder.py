"""Your own images, on a laptop: an EDM diffusion model of images of any kind and size.

  python -m cm_jax train --config=configs/folder.py --config.data.source=folder:/photos --workdir=runs/photos

Images are turned as their EXIF data asks, cropped to the largest square in the centre and resized to
--config.data.resolution=64 (32: faster by far; 128: overnight on a GPU). Class folders become classes with
--config.data.conditional=True; then `sample --label=cat`. The network follows the resolution: about 2 million
parameters to 32 pixels, 8 at 64, 20 at 128. The source may be a zip or any other too. A consistency model
of it: configs/digits_cd.py shows what to change.
"""

from cm_jax.config import default


def get_config():
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
  return config
