"""Progressive distillation on LSUN Bedroom 256x256 (CM table 2, row "PD", "as Salimans and Ho"). UNCONFIRMED
throughout: the stages, the rate and its decay are those of CM's CIFAR-10 run, the batch is that of CM's
table 3.

  python -m cm_jax convert --input=edm_bedroom256_ema.pt --out=weights/edm-bedroom
  python -m cm_jax train --config=configs/bedroom256_pd.py --teacher=weights/edm-bedroom \
    --workdir=runs/bedroom256/pd --config.accumulation=512
A pod, the same on every host:
  python -m cm_jax train --config=configs/bedroom256_pd.py --teacher=/data/edm-bedroom \
    --workdir=/data/bedroom256/pd

Paper: FID 16.92 with 1 NFE, 8.47 with 2; precision, recall 0.47, 0.27 and 0.56, 0.39 (CM table 2). Ours: not
yet run.
Compute: the paper does not say.
Departures: what they are is UNCONFIRMED. Two-step samples are those of the student of the stage M = 2. In
float32, as the converted teacher is, since the student becomes the next stage's teacher.
"""

import bedroom256_edm
import cifar10_pd


def get_config():
  config, theirs = bedroom256_edm.get_config(), cifar10_pd.get_config()
  config.num_images = 750_000 * 2048  # UNCONFIRMED
  config.objective = theirs.objective  # UNCONFIRMED: 4096 steps halved to 1
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.network.dtype = "float32"
  config.optimizer = theirs.optimizer  # UNCONFIRMED
  config.averages = theirs.averages
  config.sampler = theirs.sampler
  return config
