"""Progressive distillation on ImageNet 64x64 (CM table 2, row "PD", "as Salimans and Ho"). UNCONFIRMED
throughout: the stages, the rate and its decay are those of CM's CIFAR-10 run, the batch is that of CM's
table 3.

  python -m cm_jax train --config=configs/imagenet64_pd.py --teacher=runs/imagenet64/edm \
    --workdir=runs/imagenet64/pd --config.accumulation=32
A pod, the same on every host:
  python -m cm_jax train --config=configs/imagenet64_pd.py --teacher=/data/imagenet64/edm \
    --workdir=/data/imagenet64/pd

Paper: FID 15.39 with 1 NFE, 8.95 with 2; precision, recall 0.59, 0.62 and 0.63, 0.65 (CM table 2). Ours: not
yet run.
Compute: the paper does not say.
Departures: what they are is UNCONFIRMED. Two-step samples are those of the student of the stage M = 2.
"""

import cifar10_pd
import imagenet64_edm


def get_config():
  config, theirs = imagenet64_edm.get_config(), cifar10_pd.get_config()
  config.batch_size = 2048  # UNCONFIRMED
  config.num_images = 750_000 * 2048  # UNCONFIRMED
  config.data.flip = True
  config.objective = theirs.objective  # UNCONFIRMED: 4096 steps halved to 1
  config.init.path = "teacher"
  config.network.dropout = 0.0
  config.optimizer = theirs.optimizer  # UNCONFIRMED
  config.averages = theirs.averages
  config.sampler = theirs.sampler
  return config
