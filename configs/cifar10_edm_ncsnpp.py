"""EDM diffusion teacher on CIFAR-10, NCSN++ with flips only (jcm `configs/cifar10_k_ve.py`): the teacher of
CM's CD.

  python -m cm_jax train --config=configs/cifar10_edm_ncsnpp.py --workdir=runs/cifar10/edm_ncsnpp

Paper: FID 2.04 with 35 NFE (CM table 1). Ours: not yet run.
"""

import cifar10_edm


def get_config():
  config = cifar10_edm.get_config()
  config.data.augment = {}
  config.data.flip = True
  config.network.update(
    {
      "augment_dim": 0,
      "embedding_type": "fourier",
      "channel_mult_noise": 2,
      "encoder_type": "residual",
      "resample_filter": (1, 3, 3, 1),
    }
  )
  config.averages = {"ema": {"name": "half_life", "half_life_images": 500_000}}
  config.num_images = 400_000 * 512
  return config
