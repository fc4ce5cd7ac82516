"""Every row, as its own command starts it, with the teacher or start that it names, at a small size."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from cm_jax.assembly import build
from cm_jax.benchmark.plan.accelerators import ACCELERATORS
from cm_jax.benchmark.plan.estimate import plan
from cm_jax.benchmark.plan.setting import of_config
from cm_jax.cli.config_flags import override, teacher_network
from cm_jax.networks import lpips
from cm_jax.storage.weights import info_of, save_weights
from cm_jax.training.step import make_train_step
from cm_jax.types import Condition, TrainState
from tests.compiling import quick_jit
from tests.configs.rows import PAPERS, ROWS, commands, config_of, docstring, file_of, images_of
from tests.examples import EXAMPLES

# What `convert` makes of published files, by the folder that the commands write: which row's network it has,
# or which of the examples' with what time scale.
CONVERTED = {
  "weights/edm-cifar10": "cifar10_edm",
  "weights/edm-cifar10-jcm": ("cifar10_edm_ncsnpp", "jcm_ncsnpp", 1.0),
  "weights/edm-imagenet64-openai": ("imagenet64_edm", "openai_unet", 1000.0),
  **{f"weights/edm2-img64-{size}": f"imagenet64_edm2:{size}" for size in ("m", "l", "xl")},
  "weights/edm2-img64-s": "imagenet64_edm2",
  "weights/edm-bedroom": "bedroom256_edm",
  "weights/edm-cat": "cat256_edm",
  "weights/edm-ffhq": "ffhq64_edm",
  "weights/edm-afhqv2": "afhqv2_edm",
}
LEVELS = ("channel_mult", "ch_mult")
SIDE = 4  # of the images that stand in for all


def small_network(network: ml_collections.ConfigDict) -> None:
  """Make a network of a row narrow and flat, and leave all else of it."""
  if network.name != "teacher":
    network.update(EXAMPLES["network"][network.name])
    network.update({key: (1,) for key in LEVELS if key in network})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp("rows")


def data_of(row: str, folder: Path) -> str:
  """Return the source of images that stand in for a row's: one of every class."""
  (_, _, channels), classes = images_of(row)
  count = classes or 2
  path = folder / f"data-{channels}-{classes}"
  images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, channels), np.uint8)
  labels = {"label": np.arange(count)} if classes else {}
  if channels == 4:
    path.mkdir(exist_ok=True)
    np.save(path / "mean.npy", images.astype(np.float32) / 255)
    np.save(path / "label.npy", np.arange(count))
    return f"latents:{path}"
  np.savez(path.with_suffix(".npz"), images, *labels.values())
  return f"npz:{path.with_suffix('.npz')}"


def small(row: str, folder: Path) -> ml_collections.ConfigDict:
  """Return a row's config with stand-ins for its images, its network's size and LPIPS' weights."""
  config = config_of(row)
  config.data.source, config.data.image_shape = data_of(row, folder), ()
  small_network(config.network)
  distance = config.objective.get("distance", {})
  if distance and distance.get("name") == "lpips":
    path = folder / "lpips.safetensors"
    if not path.exists():
      arrays = {name: np.full(shape, 0.01, np.float32) for name, shape in lpips.shapes().items()}
      safetensors.numpy.save_file(arrays, path)
    distance.update({"weights": str(path), "size": 32})
  return config


def weights_of(path: str, folder: Path) -> str:
  """Return a weights folder in place of what a command names: another row's run, or a converted file."""
  if path.startswith("runs/"):
    (maker,) = {row for row in ROWS for flags in commands(row) if flags.get("workdir") == path}
    network = None
  else:
    maker, network, scale = (
      CONVERTED[path] if isinstance(CONVERTED[path], tuple) else (CONVERTED[path], None, 1.0)
    )
  to = folder / path.replace("/", "-")
  if to.exists():
    return str(to)
  config = small(maker, folder)
  if network:
    config.network = {"name": network}
    small_network(config.network)
    config.precond = {"name": "edm", "time_scale": scale}
  elif path.startswith("weights/"):
    config.network.dtype = "float32"
  experiment = build(config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(experiment.method.init, jax.random.key(0))["net"]
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.1, shapes)
  info = {**info_of(experiment.model({})), "source_sha256": "", "licence": ""}
  return str(save_weights(to, {"net": params}, info))


def as_commanded(row: str, folder: Path) -> ml_collections.ConfigDict:
  """Return a row's small config with what its command says besides."""
  flags = dict(commands(row)[0])
  config = small(row, folder)
  for name in ("teacher", "init"):
    path = flags.get(name)
    if path:
      if path.startswith("weights/"):
        assert re.search(rf"convert --input=\S+ --out={path}\s", docstring(row)), path
      config[name].path = weights_of(path, folder)
  config = override(config, [f"--{key}={value}" for key, value in flags.items() if key.startswith("config.")])
  # the command is of one device, and here are several: each takes one image of a micro-batch at least
  config.accumulation = min(config.accumulation, config.batch_size // jax.device_count())
  return config


@pytest.mark.slow
@pytest.mark.parametrize("row", PAPERS)
def test_a_row_is_built_by_its_command(row, folder):
  experiment = build(as_commanded(row, folder))
  assert experiment.method.num_steps > 1000
  assert all("matmul_precision" in told and row.startswith("imagenet64_ect") for told in experiment.cautions)
  starts = experiment.method.objective.needs.stages
  assert not starts or starts[-1] == experiment.method.num_steps


def kind(row: str) -> tuple[str, str]:
  """Return which network and which objective a row has."""
  config = config_of(row)
  network = config.network.name
  if network == "teacher":
    network = teacher_network(file_of(row))["name"]
  return network, config.objective.name


# the first row of each kind; ("jcm_ncsnpp", "consistency") has its network from the teacher
KINDS = sorted({kind(row): row for row in reversed(PAPERS)}.values())


@pytest.mark.slow
@pytest.mark.parametrize("row", KINDS)
def test_each_kind_of_network_and_objective_takes_steps_and_samples(row, folder):
  config = as_commanded(row, folder)
  config.batch_size, config.accumulation = 8, 1
  config.matmul_precision = "highest"  # a CPU makes others up, slowly
  if "distance" in config.objective:
    config.objective.distance = {"name": "l2"}  # of LPIPS tests/networks has its own
  if "num_steps" in config.sampler:
    config.sampler.num_steps = 2
  experiment = build(config)
  planned = plan(of_config(experiment.config), ACCELERATORS["h100"], 8, remat=False)
  assert planned.hours > 0 and planned.flops["backward"] > planned.flops["forward"] > 0
  method, teacher = experiment.method, experiment.teacher
  params = experiment.initial_params
  if params is None:
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, leaf.dtype)
    params = jax.tree.map(draw, jax.eval_shape(method.init, jax.random.key(0)))
  state = TrainState(jnp.zeros([], jnp.int32), params, method.optimizer.init(params))
  step = quick_jit(make_train_step(method, None if teacher is None else teacher.preconditioned))
  batch = {"image": np.stack([experiment.source[i % 2]["image"] for i in range(4)])}
  if method.num_classes:
    batch["label"] = np.arange(4, dtype=np.int32)
  for _ in range(2):
    before, (state, metrics) = (
      state,
      step(state, batch, jax.random.key(0), None if teacher is None else teacher.params, None),
    )
  assert int(state.step) == 2 and int(metrics["nonfinite_total"]) == 0
  assert any(
    jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before.params, state.params)), strict=True)
  )
  label = Condition(jnp.zeros(1, jnp.int32) if method.num_classes else None)
  noise = lambda k, shape: jax.random.normal(jax.random.key(k), shape)
  sample = quick_jit(lambda p: method.sampler(method.student(p, label), noise, (1, *method.image_shape)))
  assert jnp.isfinite(sample(state.params)).all()


def test_there_is_a_kind_of_every_objective():
  assert {"cifar10_cd_jcm"} <= set(KINDS)
  assert {config_of(row).objective.name for row in KINDS} >= {
    "denoising",
    "consistency",
    "continuous",
    "progressive",
    "scm",
  }
