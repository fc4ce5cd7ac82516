"""EDM diffusion teacher on scikit-learn's digits (8x8): the model the other digits configs start from or
distil.

  python -m cm_jax train --config=configs/digits_edm.py --workdir=runs/digits/edm

EDM's objective, preconditioning and Heun sampler; network, length and averages scaled to a laptop. The other
digits configs change what they need of it. A longer run of any: --config.num_images=N; the learning rate and
the curricula follow. An argument after a colon is the step to stop after.
"""

from cm_jax.config import default


def get_config(num_steps="0"):
  config = default()
  config.batch_size = 64
  config.num_images = 76_800  # 1,200 steps
  config.noise.sigma_data = 0.75  # the digits' own standard deviation in [-1, 1]
  config.network.model_channels = 16
  config.network.channel_mult = (1, 2)
  config.network.num_blocks = 1
  config.network.attn_resolutions = ()  # the lowest level of the decoder always has one attention
  config.network.dropout = 0.0
  config.objective = {
    "name": "denoising",
    "levels": {"name": "lognormal", "P_mean": -0.8, "P_std": 1.4},
    "reduction": "mean",
  }
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"  # to zero at the end of the run
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.995}}
  config.run.num_steps = int(num_steps)
  config.run.log_every = 20
  config.run.sample_every = 500
  config.run.checkpoint_every = 500
  return config
