"""Options of jcm's losses: every one acts as there, by plain numpy on the toy network, or fails by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.types import NoiseRange
from tests.golden import g_jcm_losses
from tests.golden.losses import losses_and_grads, mean_weights, toy_net
from tests.golden.options import UnknownOption
from tests.golden.test_loss_options import IMAGES, WEIGHTS, N, Z, each, edm, net
from tests.golden.test_options import karras

RANGE = (0.01, 50.0, 0.6, 5.0)  # sigma_min, sigma_max, sigma_data, rho


class Given:
  """As much of a case as the making of jcm's objectives asks for."""

  def __init__(self, **inputs):
    self.inputs, self.meta = inputs, {"model_config": {"num_scales": 9}}

  def input(self, name):
    return self.inputs[name]


INDICES = np.array([0, 3, 7, 5, 1, 2])
LEVELS = karras(9, *RANGE[:2], RANGE[3])
OTHERS = {
  who: {key: scale * value for key, value in WEIGHTS.items()}
  for who, scale in (("target", 0.9), ("ref", 1.1))
}
JCM_WEIGHTS = {
  "uniform": lambda t: 1, "snr": lambda t: t**-2, "SNRp1": lambda t: t**-2 + 1, "snr+1": lambda t: t**-2 + 1,
  "truncated_snr": lambda t: np.maximum(t**-2, 1), "karras": lambda t: t**-2 + RANGE[2] ** -2,
}  # fmt: skip
NORMS = {
  "l1": lambda v: np.abs(v).mean((1, 2, 3)), "l2": lambda v: (v**2).mean((1, 2, 3)),
  "linf": lambda v: np.abs(v).max((1, 2, 3)),
}  # fmt: skip


def boundary(x, t, weights):
  low, data = RANGE[0], RANGE[2]
  inside = net(x / np.sqrt(each(t**2 + data**2)), np.log(t) / 4, weights=weights)
  skip, out = data**2 / ((t - low) ** 2 + data**2), (t - low) * data / np.sqrt(t**2 + data**2)
  return each(skip) * x + each(out) * inside


def jcm_loss(fn, kw):
  low, high, _, rho = RANGE
  intervals = 9 if fn == "pd" else 8  # the scales of progressive distillation are steps
  level = lambda i: (high ** (1 / rho) + i / intervals * (low ** (1 / rho) - high ** (1 / rho))) ** rho
  t, middle, r = level(INDICES), level(INDICES + 0.5), level(INDICES + 1)
  D = lambda x, t, who: edm(x, t, RANGE[2], lambda x, c: net(x, c, weights=OTHERS[who]))
  x = IMAGES + each(t) * Z
  slope = lambda x, t: Z if kw.get("dsm_target") else (x - D(x, t, "ref")) / each(t)
  if fn == "cont":
    step, drift = 1e-5, slope(x, t)
    ahead, behind = (boundary(x + side * step * drift, t + side * step, WEIGHTS) for side in (-1, 1))
    v = (ahead - behind) / (2 * step)
    return np.sqrt((v**2).sum((1, 2, 3))) if kw["loss_norm"] == "l2" else NORMS[kw["loss_norm"]](v)
  weight = JCM_WEIGHTS[kw.get("weighting", "uniform" if fn == "cons" else "truncated_snr")](t)
  if fn == "cons":
    first = slope(x, t)
    x_r = x + each(r - t) * first
    if kw.get("solver", "heun") == "heun":
      x_r = x + each(r - t) * (first + slope(x_r, r)) / 2
    return weight * NORMS[kw.get("loss_norm", "l1")](
      boundary(x, t, WEIGHTS) - boundary(x_r, r, OTHERS["target"])
    )
  x_u = x + each(middle - t) * (x - D(x, t, "target")) / each(t)
  x_r = x_u + each(r - middle) * (x_u - D(x_u, middle, "target")) / each(middle)
  aim = x - each(t) * (x_r - x) / each(r - t)
  return weight * NORMS[kw.get("loss_norm", "l2")](edm(x, t, RANGE[2]) - aim)


JCM = [
  *(("cons", {"weighting": name}) for name in JCM_WEIGHTS),
  *(("cons", {"loss_norm": norm, "solver": "euler"}) for norm in NORMS),
  ("cons", {"dsm_target": True, "solver": "euler", "loss_norm": "linf"}),
  ("pd", {}),
  ("pd", {"loss_norm": "l1", "weighting": "uniform"}),
  ("pd", {"loss_norm": "linf", "weighting": "snr"}),
  *(("cont", {"loss_norm": norm}) for norm in NORMS),
  ("cont", {"loss_norm": "l1", "dsm_target": True}),
]


@pytest.mark.slow
def test_jcms_losses_take_every_option():
  image, z = (array.transpose(0, 2, 3, 1) for array in (IMAGES, Z))
  noise = NoiseRange(*RANGE)
  with jax.enable_x64(True):
    tree = lambda weights: {
      "net": {name: jnp.asarray(value) for name, value in weights.items() if name != "wl"}
    }
    student, denoiser = (Preconditioned(toy_net(), precond(noise)) for precond in (Boundary, EDM))
    for fn, kw in JCM:
      case = Given(run__indices=INDICES, z=z, u=np.zeros(N))
      made = g_jcm_losses._objective(case, "run", {"fn": fn, "kw": kw}, noise, image)
      draws = made.draws
      if fn == "cont":  # where its distribution of levels puts them is no option
        draws = draws._replace(t=jnp.asarray(LEVELS[INDICES]))
      teacher = OTHERS["target" if made.own_teacher else "ref"]
      params = (tree(WEIGHTS), tree(OTHERS["target"]), tree(teacher))
      learner, batch = student if made.consistency else denoiser, {"image": jnp.asarray(image)}
      found, *_ = losses_and_grads(
        made.objective, learner, denoiser, *params, batch, draws, mean_weights(batch["image"])
      )
      np.testing.assert_allclose(made.factor * found, jcm_loss(fn, kw), rtol=1e-6, err_msg=f"{fn} {kw}")


@pytest.mark.parametrize(
  ("given", "named"),
  [
    ({"fn": "cons", "kw": {"loss_norm": "lpips"}}, "loss_norm = 'lpips'"),
    ({"fn": "cons", "kw": {"solver": "rk4"}}, "solver = 'rk4'"),
    ({"fn": "pd", "kw": {"weighting": "p2"}}, "weight = 'p2'"),
    ({"fn": "cont", "kw": {"weighting": "snr"}}, "weighting = 'snr'"),
    ({"fn": "cont", "kw": {"loss_norm": "l1", "stopgrad": True}}, "stopgrad = 'l1'"),
    ({"fn": "dsm", "kw": {"ssm": True}}, "ssm = True"),
    ({"fn": "flow", "kw": {}}, "fn = 'flow'"),
    ({"fn": "cons", "masked": True}, "masked = True"),
  ],
)
def test_an_unknown_option_of_jcm_fails_by_name(given, named):
  case = Given(run__indices=INDICES, z=Z, u=np.zeros(N), tnormal=np.zeros(N))
  with pytest.raises(UnknownOption, match=f"{named} is not known here"):
    g_jcm_losses._objective(case, "run", given, NoiseRange(*RANGE), IMAGES)
