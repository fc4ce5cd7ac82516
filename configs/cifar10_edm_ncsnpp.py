"""EDM diffusion teacher on CIFAR-10, NCSN++ with flips only (CM table 1, row "EDM"; jcm
`configs/cifar10_k_ve.py`): the teacher of CM's CD.

  python -m cm_jax train --config=configs/cifar10_edm_ncsnpp.py --workdir=runs/cifar10/edm_ncsnpp \
    --config.accumulation=2
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_edm_ncsnpp.py --workdir=/data/cifar10/edm_ncsnpp

Paper: FID 2.04, IS 9.84 with 35 NFE (CM table 1). Ours: not yet run.
Compute: 400k steps of 512 images; the paper does not say how long.
Departures: EDM's NCSN++ (`songunet`), where jcm's own (`jcm_ncsnpp`) has its decoder's attention elsewhere.
"""

import cifar10_edm


def get_config():
  config = cifar10_edm.get_config()
  config.data.augment = {}
  config.data.flip = True
  config.network.augment_dim = 0
  config.network.update(cifar10_edm.NCSNPP)
  config.averages = {"ema": {"name": "half_life", "half_life_images": 500_000}}
  config.num_images = 400_000 * 512
  return config
