"""jcm's networks: NCSN++ under its two preconditionings."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from cm_jax.convert import jcm
from tests.golden.networks import assemble, evaluator, jcm_config, reduced_precision
from tests.golden.runner import Case, Handler, Result


def is_network(case: Case) -> bool:
  return case.meta.get("cls") == "NCSNpp" and (case.path / "weights.npz").is_file()


def run_network(case: Case) -> Iterator[Result]:
  config, weights = (
    jcm_config(case),
    {name.replace("/", "."): array for name, array in case.weights.items()},
  )
  teacher, student = (
    jcm.describe(config, case.meta["image_size"], weights, precond) for precond in ("edm", "boundary")
  )
  x, t = jnp.asarray(case.input("x")), jnp.asarray(case.input("t"))
  preconditioned, params = assemble(teacher)
  c_in = 1 / jnp.sqrt(t**2 + config["data_std"] ** 2)
  model = jax.jit(lambda x, c_noise: preconditioned.net(params["net"], x, c_noise))
  yield Result("model", model(c_in[:, None, None, None] * x, jnp.asarray(case.input("time_cond"))))
  D = evaluator(teacher)(x, t)[0]
  yield Result("denoiser", D)
  yield Result("score", (D - x) / t[:, None, None, None] ** 2)
  yield Result("distiller", evaluator(student)(x, t)[0])
  yield from reduced_precision(case, student, "distiller", x, t)


HANDLERS = [Handler(is_network, run_network, "networks", ("model_config", "image_size"))]
