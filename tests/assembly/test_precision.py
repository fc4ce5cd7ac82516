"""How precisely float32 products are computed: part of a run, the model's own wherever it is evaluated, told
where it hides what a loss compares (audit A3)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cm_jax import config as config_lib
from cm_jax.assembly import assemble, build, load_model
from cm_jax.assembly.cautions import cautions
from cm_jax.assembly.complete import current
from cm_jax.assembly.resume import check_same_run
from cm_jax.diffusion.precision import rounding
from cm_jax.errors import UserError
from cm_jax.evaluation.records import Record, computed_in
from cm_jax.sampling.generate import make_generator
from cm_jax.storage.weights import info_of, load_info, save_weights
from cm_jax.training.program import Program
from tests import tiny
from tests.configs.rows import config_of as shipped
from tests.examples import EXAMPLES

SHAPE, OLD = (8, 8, 1), Path(__file__).parents[1] / "storage" / "old"
HIGHEST, HIGH = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH
BF16 = jax.lax.Precision.DEFAULT


@pytest.fixture(autouse=True)
def as_a_user_has_it():
  """Outside the tests nothing sets a precision."""
  with jax.default_matmul_precision(None):
    yield


def precisions(program) -> set:
  """Return the precisions of all products of float32 in a jaxpr, those of its gradients too."""
  found = set()
  for eqn in program.eqns:
    for param in eqn.params.values():
      for inner in param if isinstance(param, (tuple, list)) else (param,):
        if hasattr(inner, "jaxpr"):
          found |= precisions(inner.jaxpr)
        elif hasattr(inner, "eqns"):
          found |= precisions(inner)
    if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
      given = eqn.params["precision"]
      found |= set(given) if isinstance(given, tuple) else {given}
  return found


def config_of(objective=tiny.CT, **changes):
  config = tiny.config(objective)
  config.network = {**EXAMPLES["network"]["toy"]}
  config.update(changes)
  return config


WANTED = [("highest", {HIGHEST}), ("tensorfloat32", {HIGH}), ("bfloat16", {BF16}), ("default", {None})]


@pytest.mark.parametrize(("precision", "wanted"), WANTED)
def test_a_step_and_a_sample_compute_in_the_runs_precision(precision, wanted):
  experiment = build(config_of(matmul_precision=precision))
  assert experiment.config.matmul_precision == precision
  program = Program(experiment)
  batch = {"image": jax.ShapeDtypeStruct((experiment.config.batch_size, *SHAPE), jnp.uint8)}
  step = jax.make_jaxpr(program.step)(program.shapes, batch, jax.random.key(0), *program.frozen())
  # what counts examples by noise level is a product too, outside the loss's own
  assert precisions(step.jaxpr) == wanted
  model = experiment.model({"net": program.shapes.params["net"]})
  assert computed_in(model) == {"dtype": "float32", "matmul_precision": precision}
  indices = jnp.arange(2, dtype=jnp.int32)
  sample = lambda params: make_generator(model, experiment.method.sampler)(
    params, jnp.uint32(0), indices, None
  )
  assert precisions(jax.make_jaxpr(sample)(model.params).jaxpr) == wanted


def test_it_is_stored_with_the_weights_and_read_again(tmp_path):
  experiment = build(config_of(None, matmul_precision="tensorfloat32"))
  shapes = jax.eval_shape(experiment.method.init, jax.random.key(0))["net"]
  params = {"net": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)}
  about = {**info_of(experiment.model(params)), "source_sha256": "", "licence": ""}
  path = save_weights(tmp_path / "w", params, about)
  assert load_info(path)["matmul_precision"] == "tensorfloat32"
  model = load_model(path)
  assert model.matmul_precision == "tensorfloat32"
  evaluate = lambda x, sigma: model.denoiser()(x, sigma)
  assert precisions(jax.make_jaxpr(evaluate)(jnp.ones((2, *SHAPE)), jnp.ones(2)).jaxpr) == {HIGH}
  student = config_of(tiny.CD)
  student.teacher.path = str(path)
  teacher = build(student).teacher  # a run's own precision is that of all it computes
  assert teacher.matmul_precision == teacher.preconditioned.matmul_precision == "highest"
  stored = json.loads((path / "model.json").read_text())
  (path / "model.json").write_text(json.dumps({**stored, "matmul_precision": "float8"}))
  with pytest.raises(UserError, match=r"matmul_precision = float8: expected"):
    load_model(path)


def test_an_old_run_keeps_jaxs_default_and_another_precision_is_another_run():
  stored = config_lib.plain_json(config_of())
  del stored["matmul_precision"]
  assert current({**stored, "format": 2}).matmul_precision == "default"
  assert current(json.loads((OLD / "run" / "config.json").read_text())).matmul_precision == "default"
  assert load_model(OLD / "weights").matmul_precision == "default"
  with pytest.raises(UserError, match=r"^config\.matmul_precision = highest: expected 'default' as in x"):
    check_same_run(config_of(), {**stored, "format": 2}, "x")
  assert config_lib.sha256(config_of()) != config_lib.sha256(config_of(matmul_precision="bfloat16"))
  with pytest.raises(UserError, match=r"^config\.matmul_precision = float32: expected"):
    assemble(config_of(matmul_precision="float32"), SHAPE, 0)
  assert Record(metric="x", value=1.0).matmul_precision is None  # records from before do not say it


def gap_of(pairs: dict, step: int) -> float:
  config = config_of({**tiny.ECT, "pairs": pairs})
  return assemble(config, SHAPE, 0).objective.finest_gap(step)


@pytest.mark.parametrize("name", ["karras", "lognormal"])
def test_the_finest_gap_is_that_of_the_grid_at_a_step(name):
  """At the noisy end: 1 - (1 - (1 - (sigma_min/sigma_max)^(1/rho))/(N - 1))^rho."""
  scales = {"name": "doubling", "s0": 17, "s1": 272, "total_images": 16 * 100}
  for step, num in ((0, 18), (25, 35), (99, 273)):
    exact = 1 - (1 - (1 - (0.002 / 80) ** (1 / 7)) / (num - 1)) ** 7
    assert gap_of({"name": name, "scales": scales}, step) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
  ("changes", "least"), [({}, 1.0), ({"adjustment": "constant"}, 1.0), ({"k": 3.0, "b": 1e-6}, 2.5)]
)
def test_the_finest_gap_of_ects_pairs_is_that_of_its_stage(changes, least):
  stages = {"name": "stages", "stage_images": 160, "num_stages": 6}
  for stage in (2, 5):
    found = gap_of({"name": "continuous", "stages": stages, "q": 3.0, **changes}, stage * 10)
    assert found == pytest.approx(least / 3 ** (stage + 1), rel=0.02)


ROUNDS = [
  # the audit's table, above sigma = 1: rounding beside the difference at N = 18, 40, 201, 321 and 1281
  ("float32", "tensorfloat32", (0.009, 0.026, 0.12, 0.19, 0.83)),
  ("float32", "bfloat16", (0.077, 0.18, 0.92, 1.6, 5.1)),
  ("bfloat16", "highest", (0.15, 0.37, 2.0, 3.1, 11.0)),
]


@pytest.mark.parametrize(("dtype", "precision", "table"), ROUNDS)
def test_the_caution_is_where_the_table_says_that_rounding_is_half_of_what_is_compared(
  dtype, precision, table
):
  for num, measured in zip((18, 40, 201, 321, 1281), table, strict=True):
    config = config_of(matmul_precision=precision)
    config.network.dtype = dtype
    config.objective.pairs = {"name": "lognormal", "scales": {"name": "constant", "value": num}}
    method = assemble(config, SHAPE, 0)
    predicted = rounding(dtype, precision, "gpu") / method.objective.finest_gap(0)
    assert predicted == pytest.approx(measured, rel=0.35)
    told = cautions(config, method, "gpu")
    assert bool(told) == (measured > 0.5)
    if told:
      where = "network.dtype = bfloat16" if dtype == "bfloat16" else f"matmul_precision = {precision}"
      assert told[0].startswith(f"config.{where}: expected ") and "\n" not in told[0]


def test_what_is_told_of_the_shipped_rows():
  """None of them hides what it compares; iCT on a TPU as JAX is set, or in bfloat16, would."""
  for name in ("cifar10_ict", "cifar10_ect", "cifar10_sct", "imagenet64_cd", "imagenet64_ct", "cifar10_pd"):
    config = shipped(name)
    dtype = config.network.dtype
    config.network, config.data.augment = {"name": "toy", "dtype": dtype}, {}
    config.init.path = "as its command says"
    method = assemble(config, SHAPE, 10)
    assert cautions(config, method, "gpu") == cautions(config, method, "tpu") == []
    if name in ("cifar10_ict", "cifar10_ect"):
      config.matmul_precision = "default"
      assert not cautions(config, method, "cpu")
      assert cautions(config, method, "gpu") and cautions(config, method, "tpu")
