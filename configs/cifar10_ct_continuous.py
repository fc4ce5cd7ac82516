"""Consistency training in continuous time on CIFAR-10 (CM appendix B, theorem 6, figure 7; jcm `launch.sh`),
with stop-gradient and from the EDM teacher's weights. ":l2-stopgrad" is the default, ":lpips-stopgrad" the
other.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax train --config=configs/cifar10_ct_continuous.py --init=runs/cifar10/edm_ncsnpp \
    --workdir=runs/cifar10/ct_continuous --config.accumulation=2
  python -m cm_jax train --config=configs/cifar10_ct_continuous.py:lpips-stopgrad \
    --init=runs/cifar10/edm_ncsnpp --workdir=runs/cifar10/ct_continuous_lpips --config.accumulation=4
A pod, the same on every host:
  python -m cm_jax train --config=configs/cifar10_ct_continuous.py --init=/data/cifar10/edm_ncsnpp \
    --workdir=/data/cifar10/ct_continuous

Paper: FID in figure 7 only, no table. Ours: not yet run.
Compute: l2 800k steps of 512 images, lpips 400k (jcm's published checkpoints).
Departures: dropout as configs/cifar10_cd_continuous.py says (UNCONFIRMED).
"""

import cifar10_cd_continuous

from cm_jax.config import variant_of

VARIANTS = ("l2-stopgrad", "lpips-stopgrad")


def get_config(variant=""):
  variant = variant_of(variant, VARIANTS)
  config = cifar10_cd_continuous.get_config(variant)
  config.objective.drift = "monte_carlo"
  config.init.path = ""  # --init
  config.num_images = (800_000 if variant == "l2-stopgrad" else 400_000) * 512
  return config
