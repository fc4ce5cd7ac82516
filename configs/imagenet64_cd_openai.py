"""Consistency distillation on ImageNet 64x64 from the teacher that OpenAI published, `edm_imagenet64_ema.pt`:
the network is the teacher's own, OpenAI's UNet, which takes 1000 ln(sigma)/4. All else is
configs/imagenet64_cd.py (CM tables 2 and 3), with its distances.

  python -m cm_jax convert --from=lpips --out=weights/lpips.safetensors
  python -m cm_jax convert --input=edm_imagenet64_ema.pt --out=weights/edm-imagenet64-openai
  python -m cm_jax train --config=configs/imagenet64_cd_openai.py --teacher=weights/edm-imagenet64-openai \
    --workdir=runs/imagenet64/cd_openai --config.accumulation=64
  python -m cm_jax train --config=configs/imagenet64_cd_openai.py:l2 --teacher=weights/edm-imagenet64-openai \
    --workdir=runs/imagenet64/cd_openai_l2 --config.accumulation=32
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_cd_openai.py \
    --teacher=/data/edm-imagenet64-openai --workdir=/data/imagenet64/cd_openai

Paper: lpips FID 6.20 with 1 NFE, 4.70 with 2 (CM table 2). l2 is not in the table. Ours: not yet run.
Compute: 600k steps of 2,048 images on 64 A100 (CM table 3).
Departures: as configs/imagenet64_cd.py.
"""

import imagenet64_cd

VARIANTS = imagenet64_cd.VARIANTS
# Of that checkpoint, for `plan` without --teacher: the flags of its sampling script.
TEACHER_NETWORK = {
  "name": "openai_unet", "model_channels": 192, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4),
  "attention_resolutions": (2, 4, 8), "num_head_channels": 64, "use_scale_shift_norm": True,
  "resblock_updown": True,
}  # fmt: skip


def get_config(variant=""):
  config = imagenet64_cd.get_config(variant)
  config.network = {"name": "teacher", "dtype": "bfloat16"}  # without dropout, as the row has it
  config.precond = {"name": "boundary", "time_scale": 1000.0}
  return config
