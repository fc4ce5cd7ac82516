"""Easy consistency tuning on CIFAR-10 (ECT; `run_ecm.sh`, `run_ecm_1hour.sh`): EDM's DDPM++ tuned with batch
128. ":200k", the default, ":100k" and ":400k" are its README's lengths; ":1hour" is 8,000 steps with q =
256, one stage.

  python -m cm_jax convert --input=edm-cifar10-32x32-uncond-vp.pkl --out=weights/edm-cifar10
  python -m cm_jax train --config=configs/cifar10_ect.py --init=weights/edm-cifar10 \
    --workdir=runs/cifar10/ect
  python -m cm_jax train --config=configs/cifar10_ect.py:1hour --init=weights/edm-cifar10 \
    --workdir=runs/cifar10/ect_1hour
  python -m cm_jax train --config=configs/cifar10_ect.py:100k --init=weights/edm-cifar10 \
    --workdir=runs/cifar10/ect_100k
  python -m cm_jax train --config=configs/cifar10_ect.py:400k --init=weights/edm-cifar10 \
    --workdir=runs/cifar10/ect_400k
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_ect.py --init=/data/edm-cifar10 \
    --workdir=/data/cifar10/ect
A teacher of configs/cifar10_edm.py, too, can be the start (--init=runs/cifar10/edm).

Their README: FID with 1 and 2 NFE after 100k steps 4.54, 2.15 (2.20 where others quote it), 200k 3.86, 2.15,
400k 3.60, 2.11. 1hour: 2.73 with 2 (the paper's abstract). Ours: not yet run.
Compute: 1hour one hour of an A100 (the abstract); the others are not said, 2 or 4 GPUs are recommended.
Departures: gradients that are not finite skip the step; ECT replaces them
(--config.optimizer.nonfinite=zero). That 1hour stops at 8,000 steps is FastGen's reading of the hour.

Stages are 25k steps long. Those of 200k and 400k follow the run's length (8, and 16 as in ECT's code, which
goes on past the eighth), and so does 100k's number of 4.
"""

import cifar10_edm

from cm_jax.config import variant_of

VARIANTS = ("200k", "1hour", "100k", "400k")
STAGES = {"200k": 8, "1hour": 1, "100k": 4, "400k": 16}
STEPS = {"200k": 200_000, "1hour": 8_000, "100k": 100_000, "400k": 400_000}


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = cifar10_edm.get_config()
  config.batch_size = 128
  config.num_images = STEPS[variant] * 128
  config.data.augment = {}  # the network keeps the teacher's augmentation input, which gets nothing
  config.precond = {"name": "ect"}
  config.noise.sigma_min = 0.003  # the boundary in evaluation, as in ECT's ECMPrecond
  config.objective = {
    "name": "consistency",
    "drift": "monte_carlo",
    "solver": "euler",
    "pairs": {
      "name": "continuous",
      "P_mean": -1.1,
      "P_std": 2.0,
      "q": 256.0 if variant == "1hour" else 2.0,
      "stages": {"name": "stages", "num_stages": STAGES[variant]},
    },
    "distance": {"name": "pseudo_huber", "c": 0.0},
    "weight": "inverse_gap",
    "target": "stop_gradient",
  }
  config.network.dropout = 0.2
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9993 if variant == "1hour" else 0.9999}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 0.821)}
  return config
