"""sCD on the latents of ImageNet 512x512 (sCM tables 2 and 5): the teacher's drift under guidance of a scale
that is drawn uniformly from 1 to 2 and that the student is told. ":s" is the default, ":m", ":l", ":xl",
":xxl" the others.

  python -m cm_jax train --config=configs/imagenet512_scd.py --teacher=runs/imagenet512/trigflow_s \
    --workdir=runs/imagenet512/scd_s --config.accumulation=32
  python -m cm_jax train --config=configs/imagenet512_scd.py:m --teacher=runs/imagenet512/trigflow_m \
    --workdir=runs/imagenet512/scd_m --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_scd.py:l --teacher=runs/imagenet512/trigflow_l \
    --workdir=runs/imagenet512/scd_l --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet512_scd.py:xl --teacher=runs/imagenet512/trigflow_xl \
    --workdir=runs/imagenet512/scd_xl --config.accumulation=128
  python -m cm_jax train --config=configs/imagenet512_scd.py:xxl --teacher=runs/imagenet512/trigflow_xxl \
    --workdir=runs/imagenet512/scd_xxl --config.accumulation=256
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet512_scd.py:xxl \
    --teacher=/data/imagenet512/trigflow_xxl --workdir=/data/imagenet512/scd_xxl \
    --config.mesh.fsdp=8
The scale is given when sampling:
  python -m cm_jax sample --workdir=runs/imagenet512/scd_s --nfe=2 --guidance=1.4 --num=64 --out=latents.npz

Paper: FID with 1 and 2 NFE of s 3.07, 2.50, m 2.75, 2.26, l 2.55, 2.04, xl 2.40, 1.93, xxl 2.28, 1.88, the
best scale of each, about 1.3 to 1.5 for 1 NFE and 1.2 to 1.4 for 2 (sCM table 5); it is of decoded images,
and the decoder is not yet built. Ours: not yet run.
Compute: 200k steps of 2,048 images; the paper does not say how long.
Departures: as configs/imagenet64_sct.py.
"""

import imagenet512_sct

from cm_jax.config import variant_of

VARIANTS = imagenet512_sct.VARIANTS


def get_config(variant=""):
  size = variant_of(variant, VARIANTS)
  config = imagenet512_sct.get_config(size)
  config.num_images = 200_000 * 2048
  config.objective.drift = "teacher"
  config.objective.guidance = (1.0, 2.0)
  config.init.path = "teacher"
  config.network.guidance_embedding = True
  config.network.dropout = 0.0 if size == "s" else 0.1
  return config
