"""EDM diffusion teacher on scikit-learn's digits (8x8): the model the other digits configs distil or start from.

  python -m cm_jax train --config=configs/digits_edm.py --workdir=runs/digits/edm

EDM's objective, preconditioning and Heun sampler; widths, steps and averages scaled to a laptop.
"""

from cm_jax.config import default

BATCH_SIZE, NUM_STEPS = 128, 1000


def get_config():
  config = default()
  config.batch_size = BATCH_SIZE
  config.noise.sigma_data = 0.75  # the digits' own standard deviation in [-1, 1]
  config.network.model_channels = 16
  config.network.channel_mult = (1, 4)
  config.network.num_blocks = 1
  config.network.attn_resolutions = (4,)
  config.network.dropout = 0.0
  config.objective = {"name": "denoising", "P_mean": -0.8, "P_std": 1.4, "reduction": "mean"}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"
  config.optimizer.decay_images = BATCH_SIZE * NUM_STEPS
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.995}}
  config.run.num_steps = NUM_STEPS
  config.run.log_every = 20
  config.run.sample_every = 500
  config.run.checkpoint_every = 500
  return config
