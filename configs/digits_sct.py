"""sCT on the digits: continuous-time consistency training in TrigFlow (sCM Alg. 1), started from the
diffusion teacher.

  python -m cm_jax train --config=configs/digits_sct.py --init=runs/digits/edm --workdir=runs/digits/sct

The levels and the length are those of digits_scd.py.
"""

import digits_scd


def get_config():
  config = digits_scd.get_config()
  config.objective.drift = "monte_carlo"
  config.init.path = ""
  return config
