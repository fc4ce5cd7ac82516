"""Easy consistency tuning on CIFAR-10 (ECT; its `run_ecm.sh`): EDM's DDPM++ tuned with batch 128 for 25.6 M
images, dropout 0.2.

  python -m cm_jax convert --input=edm-cifar10-32x32-uncond-vp.pkl --out=weights/edm-cifar10
  python -m cm_jax train --config=configs/cifar10_ect.py --init=weights/edm-cifar10 --workdir=runs/cifar10/ect

Their README: FID 3.86 with 1 NFE, 2.15 with 2 after these 200k steps. Ours: not yet run. A teacher of
configs/cifar10_edm.py, too, can be the start (--init=runs/cifar10/edm). Sampled as they do: not clipped.

The eight stages follow the run's length. ECT's own stages stay 25k steps long and go on past the eighth in a
longer run, such as its 400k row:
  --config.num_images=51200000 --config.objective.pairs.stages.stage_images=3200000
  --config.objective.pairs.stages.num_stages=0
"""

import cifar10_edm


def get_config():
  config = cifar10_edm.get_config()
  config.batch_size = 128
  config.num_images = 25_600_000  # 200k steps, 25k a stage
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
      "q": 2.0,
      "stages": {"name": "stages", "num_stages": 8},
    },
    "distance": {"name": "pseudo_huber", "c": 0.0},
    "weight": "inverse_gap",
    "target": "stop_gradient",
  }
  config.network.dropout = 0.2
  config.optimizer.name = "radam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9999}}
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 0.821)}
  return config
