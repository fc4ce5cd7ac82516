"""sCT from the cifar16 teacher: continuous-time consistency training in TrigFlow (sCM Alg. 1). No paper's
row.

  python -m cm_jax train --config=configs/cifar16_sct.py --init=runs/cifar16/edm --workdir=runs/cifar16/sct

Unlike the paper's CIFAR-10 row: ln sigma ~ N(-1.1, 2^2), ECT's levels, so that sigma = 80 is trained too;
the tangent warmed up over a quarter of the run; every level weighs the same: where the learnt weight ends,
and what it does not come to in 6,000 steps (configs/results/cifar16). Adam with a cosine; length, learning
rate and average are those of cifar16_cd.py.
"""

import cifar16_ect
import cifar16_edm


def get_config():
  config = cifar16_ect.get_config()
  config.precond = cifar16_edm.get_config().precond
  config.objective = {
    "name": "scm",
    "drift": "monte_carlo",
    "levels": {"name": "lognormal", "P_mean": -1.1, "P_std": 2.0},
    "adaptive": False,
    "warmup_images": 192_000,
  }
  return config
