"""A tutorial in two dimensions: points on a roll, a diffusion teacher, a consistency model distilled from it
(CD) and one trained alone (CT). Each takes minutes on a laptop; nothing is downloaded.

A point is an "image" of one pixel and two channels, float32 [1, 1, 2]: all that the library has, objectives,
samplers, averages, checkpoints, works on it as on photos.

1. The teacher learns D(x, sigma), the mean of all points that x may have been before noise of level sigma:

  python -m cm_jax train --config=configs/swiss_roll.py --workdir=runs/roll/edm

2. Sampling solves dx/dsigma = (x - D(x, sigma)) / sigma from noise to a point, in 35 evaluations of D:

  python -m cm_jax sample --workdir=runs/roll/edm --num_steps=18 --num=2000 --out=runs/roll/edm.npz

3. Consistency distillation teaches f(x, sigma) where that solution ends. On neighbouring noise levels r < t
of one path f must agree: the teacher steps from x_t to x_r (Heun), and f(x_t, t) is pulled to f(x_r, r). At
sigma_min f is the identity, by its preconditioning, so that agreement reaches all levels from there:

  python -m cm_jax train --config=configs/swiss_roll.py:cd --teacher=runs/roll/edm --workdir=runs/roll/cd
  python -m cm_jax sample --workdir=runs/roll/cd --sigmas=5 --num=2000 --out=runs/roll/cd.npz

4. Consistency training needs no teacher: x_t and x_r are the same point with the same noise, an unbiased
guess of the teacher's step, and noise levels draw nearer to each other as training goes on:

  python -m cm_jax train --config=configs/swiss_roll.py:ct --workdir=runs/roll/ct

5. Draw it: the noise, each place in the colour of the place on the roll that f takes it to; the teacher's
paths, which the colours follow; what f makes of noise in one evaluation.

  python launch/front.py

In Python: `load_model("runs/roll/cd").denoiser()` is f, to be called with arrays [B, 1, 1, 2] and a sigma.
"""

import hashlib

import numpy as np

from cm_jax.config import default, variant_of

VARIANTS = ("edm", "cd", "ct")
NUM = 8192
TURNS = (1.5 * np.pi, 4.5 * np.pi)  # angles at which the roll begins and ends
SCALE = 0.09  # of a point's distance from the middle by its angle, that all lie within [-1.3, 1.3]


def roll(angle):
  """Return the roll's points [N, 2] at angles [N]."""
  return SCALE * angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


class Roll:
  """Points along the roll, evenly by its length, with a little noise across it."""

  num_classes = 0

  def __init__(self):
    rng = np.random.default_rng(0)
    low, high = np.square(TURNS)  # the length up to an angle grows nearly as its square
    self.points = (roll(np.sqrt(rng.uniform(low, high, NUM))) + rng.normal(0, 0.015, (NUM, 2))).astype("f4")
    self.fingerprint = hashlib.sha256(self.points.tobytes()).hexdigest()

  def __len__(self):
    return NUM

  def __getitem__(self, index):
    return {"image": self.points[index].reshape(1, 1, 2), "label": -1}


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = default()
  config.data.source = "python:swiss_roll:Roll"
  config.batch_size = 256
  config.num_images = 1_024_000  # 4,000 steps
  config.noise.sigma_max = 5.0  # eight times the points' own deviation: little is left of them
  config.noise.sigma_data = 0.65
  config.network = {"name": "dit", "patch_size": 1, "hidden_size": 64, "depth": 3, "num_heads": 1}
  config.objective = {"name": "denoising", "levels": {"name": "lognormal", "P_mean": -1.5, "P_std": 1.4}}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.995}}
  config.run.log_every = 50
  config.run.checkpoint_every = 1000
  if variant == "edm":
    return config
  config.num_images = 2_560_000  # at 1,024,000 the samples of one evaluation are not all on the roll yet
  config.precond = {"name": "boundary"}
  scales = {"name": "constant", "value": 18} if variant == "cd" else {"name": "doubling", "s0": 10, "s1": 160}
  config.objective = {
    "name": "consistency",
    "drift": "teacher" if variant == "cd" else "monte_carlo",
    "solver": "heun" if variant == "cd" else "euler",
    "pairs": {"name": "karras" if variant == "cd" else "lognormal", "scales": scales},
    "distance": {"name": "pseudo_huber", "c": 0.03},
    "weight": "inverse_gap",
    "target": {"name": "stop_gradient"},
  }
  config.init.path = "teacher" if variant == "cd" else ""
  config.sampler = {"name": "multistep", "sigmas": (5.0,), "clip": False}
  config.sigmas_by_nfe = {"2": (5.0, 0.5)}
  return config
