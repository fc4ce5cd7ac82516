"""EDM diffusion teachers on CIFAR-10 (EDM table 2, configuration F, and its `train.py`): DDPM++ ("vp") or
NCSN++ ("ve"), augmented, with or without classes. ":uncond-vp", the default, is the start of ECT, sCT and
sCD.

  python -m cm_jax data prepare --source=cifar10 --format=array_record --out=~/tensorflow_datasets
  python -m cm_jax train --config=configs/cifar10_edm.py --workdir=runs/cifar10/edm --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_edm.py:cond-vp --workdir=runs/cifar10/edm_cond \
    --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_edm.py:uncond-ve --workdir=runs/cifar10/edm_ve \
    --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_edm.py:cond-ve --workdir=runs/cifar10/edm_ve_cond \
    --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_edm.py --workdir=/data/cifar10/edm

FID with 35 NFE (18 steps of Heun): uncond-vp 1.97, cond-vp 1.79 (EDM's README, the least of three seeds; 2.01
as sCM's table 1 quotes the former). Those of ve: UNCONFIRMED. Ours: not yet run.
Compute: 200 M images in batches of 512, about two days on 8 V100 (EDM's README).
Departures: gradients that are not finite skip the step; EDM replaces them
(--config.optimizer.nonfinite=zero). The warm-up's first step already moves.
"""

from cm_jax.config import default, variant_of

DATA = "tfds:cifar10:train"
VARIANTS = ("uncond-vp", "cond-vp", "uncond-ve", "cond-ve")
NCSNPP = {
  "embedding_type": "fourier",
  "channel_mult_noise": 2,
  "encoder_type": "residual",
  "resample_filter": (1, 3, 3, 1),
}


def get_config(variant=""):
  labels, _, network = variant_of(variant, VARIANTS).partition("-")
  config = default()  # the network, the optimiser and the average are this row's
  config.data.source = DATA
  config.data.conditional = labels == "cond"
  config.data.augment = {"p": 0.12}
  config.network.augment_dim = 9
  if network == "ve":
    config.network.update(NCSNPP)
  config.sigmas_by_nfe = {}  # a diffusion model
  config.num_images = 200_000_000
  return config
