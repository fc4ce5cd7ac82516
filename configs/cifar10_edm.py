"""EDM diffusion teacher on CIFAR-10, DDPM++ (EDM table 7 and `train.py`): the start of ECT, sCT and sCD.

  python -m cm_jax data prepare --source=cifar10 --format=array_record --out=~/tensorflow_datasets
  python -m cm_jax train --config=configs/cifar10_edm.py --workdir=runs/cifar10/edm

Batch 512 for 200 M images (about two days on 8 V100, by EDM's README). FID 2.01 with 35 NFE, as sCM's table 1
quotes it. Ours: not yet run.
"""

from cm_jax.config import default

DATA = "tfds:cifar10:train"


def get_config():
  config = default()  # the network, the optimiser and the average are this row's
  config.data.source = DATA
  config.data.augment = {"p": 0.12}
  config.network.augment_dim = 9
  config.num_images = 200_000_000
  return config
