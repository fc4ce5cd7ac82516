"""sCT on CIFAR-10 (sCM, appendix G), from an EDM teacher by the change of variables: batch 512, RAdam,
tangent warm-up of 10k steps.

  python -m cm_jax train --config=configs/cifar10_sct.py --init=runs/cifar10/edm --workdir=runs/cifar10/sct

Paper: FID 2.85 with 1 NFE, 2.06 with 2, from a teacher trained in TrigFlow with another normalisation (sCM
  table 1). Ours: not yet run.
The number of steps is not in the paper: 400k, the teacher's, is assumed.

ln sigma ~ N(-1, 1.8^2) is the paper's row for the network this starts from, a plain DDPM++; N(-1, 1.4^2)
belongs to one with adaptive double normalisation. From such a checkpoint FastGen reports FID 3.23 (sCT) and
3.22 (sCD) with 1 NFE: that is what to expect here, not 2.85.
"""

import cifar10_edm


def get_config():
  config = cifar10_edm.get_config()
  config.data.augment = {}
  config.objective = {
    "name": "scm",
    "drift": "monte_carlo",
    "levels": {"name": "lognormal", "P_mean": -1.0, "P_std": 1.8},
    "warmup_images": 10_000 * 512,
  }
  config.network.dropout = 0.2
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.b2 = 0.99
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "half_life", "half_life_images": 500_000}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 0.982)}
  config.num_images = 400_000 * 512
  return config
