"""What `plan` says against what is: bytes of real arrays, XLA's own count of FLOPs and of memory."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.benchmark.cases import CASES, Workload, config_of
from cm_jax.benchmark.objectives import flops as flops_by_xla
from cm_jax.benchmark.objectives import temp_bytes
from cm_jax.benchmark.plan import activations, costs, report
from cm_jax.benchmark.plan.accelerators import ACCELERATORS, accelerator, of_device
from cm_jax.benchmark.plan.estimate import plan
from cm_jax.benchmark.plan.flops import count
from cm_jax.benchmark.plan.memory import held, shared_bytes, tree_bytes
from cm_jax.benchmark.plan.setting import Setting, images_of, of_config
from cm_jax.cli.config_flags import our_configs, read_file
from cm_jax.config import default
from cm_jax.errors import UserError
from cm_jax.evaluation.plans import read_plans
from cm_jax.training.averages.track import split_averages
from cm_jax.training.step import init_state, make_train_step
from tests import tiny
from tests.compiling import quick_jit

UNET = {"num_blocks": 1, "dropout": 0.0, "channel_mult": (1, 2)}
NETWORKS = {
  "songunet": ({"name": "songunet", **UNET, "model_channels": 64, "attn_resolutions": (8,)}, (16, 16, 3), 8),
  "edm2": ({"name": "edm2", **UNET, "model_channels": 48, "attn_resolutions": ()}, (16, 16, 3), 12),
  "dit": ({"name": "dit", "patch_size": 2, "hidden_size": 192, "depth": 3, "num_heads": 4}, (16, 16, 4), 12),
}


def setting_of(network: str, case: str = "denoising") -> tuple[Setting, int]:
  section, shape, batch = NETWORKS[network]
  config = config_of(CASES[case], Workload(section, shape, batch), batch)
  config.data.image_shape = shape
  return of_config(config), batch


def test_bytes_of_what_a_run_holds_are_exact():
  config = tiny.config(tiny.CD)
  config.averages = {"short": {"name": "constant", "mu": 0.9}, "long": {"name": "constant", "mu": 0.99}}
  setting = of_config(config)
  state = jax.jit(lambda: init_state(setting.method.init, setting.method.optimizer, 3))()
  nbytes = lambda tree: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
  opt_state, averages = split_averages(state.opt_state)
  assert set(averages) == {"short", "long", "target"}
  teacher = jax.jit(setting.method.init)(jax.random.key(1))  # the teacher's network is the student's
  found = held(setting).on_a_device(1)
  assert found["params"] == nbytes(state.params) == found["gradients"]
  assert found["averages"] == nbytes(averages) == 3 * nbytes(state.params)
  assert found["optimiser"] == nbytes(opt_state)
  assert found["teacher"] == nbytes(teacher) and found["distance"] == 0
  assert tree_bytes(setting.state) == nbytes(state)
  assert any("teacher" in line for line in setting.assumed)


def test_bytes_of_shared_leaves():
  leaves = {
    "w": jax.ShapeDtypeStruct((3, 3, 96, 160), jnp.float32),
    "b": jax.ShapeDtypeStruct((160,), jnp.float32),
  }
  assert shared_bytes(leaves, 5) == 4 * (9 * 96 * 160 // 5 + 160)
  assert shared_bytes(leaves, 7) == tree_bytes(leaves)  # 7 divides no dimension


def traced(function, *shapes):
  return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def test_flops_of_products_by_hand():
  conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  # of 5 rows 13 pairs (row, tap) lie inside, of 7 columns 19
  assert count(traced(conv, (2, 5, 7, 3), (3, 3, 3, 4))) == 2 * 2 * (13 * 19) * 3 * 4
  assert (
    count(traced(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 2, 3), (4, 3, 5))) == 2 * 4 * 2 * 3 * 5
  )
  repeated = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=6)[0]
  assert count(traced(repeated, (3, 3))) == 6 * 2 * 27
  remade = jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ x) @ x)(x).sum())
  plain = jax.grad(lambda x: (jnp.sin(x @ x) @ x).sum())
  assert count(traced(remade, (8, 8))) - count(traced(plain, (8, 8))) >= 2 * 8**3


def test_activations_of_programs_by_hand():
  kib = lambda function, *shapes: activations.peak(traced(function, *shapes)) / 1024
  square = (16, 16)  # 1 KiB
  assert kib(lambda x: x @ x, square) == 1
  assert kib(lambda x: jnp.exp(x @ x) + 1, square) == 1  # in its place
  chain = lambda x: ((x @ x) @ x) @ x  # each is gone when the next but one is made
  assert kib(chain, square) == 2
  kept = lambda x: jax.vjp(chain, x)[1](x)[0]
  assert kib(kept, square) > 3
  whole = lambda x: jnp.tanh(x @ x) @ x
  stacked = lambda x: whole(whole(whole(x))).sum()
  remade = lambda x: jax.checkpoint(whole)(jax.checkpoint(whole)(jax.checkpoint(whole)(x))).sum()
  assert kib(jax.grad(remade), square) < kib(jax.grad(stacked), square)


def test_flops_do_not_depend_on_the_kernels_of_the_machine_that_counts(monkeypatch):
  """Of student, teacher and learned distance alike: on one CPU they all would be others."""
  config = tiny.config(tiny.CD)
  section = {"name": "songunet", "num_blocks": 1, "channel_mult": (1,), "model_channels": 32}
  config.network = {**section, "attn_resolutions": (), "dropout": 0.0}
  config.objective = {**tiny.CD, "distance": {"name": "lpips", "weights": "", "size": 0}}
  config.data.image_shape = (16, 16, 3)
  several = costs.Traced(of_config(config), 2).by_part()
  monkeypatch.setattr(jax, "device_count", lambda *_: 1)
  assert costs.Traced(of_config(config), 2).by_part() == several
  assert several["teacher"] > 0.9 * several["forward"]


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_flops_and_activations_are_those_of_xla(network):
  setting, batch = setting_of(network)
  step = jax.jit(make_train_step(setting.method), donate_argnums=0)
  compiled = step.lower(*setting.step_arguments(batch)).compile(**quick_jit.keywords)
  found = costs.Traced(setting, batch)
  flops, by_xla = found.flops(), flops_by_xla(compiled)
  taken, taken_by_xla = activations.peak(found.gradient, with_results=False), temp_bytes(compiled)
  print(f"{network}: FLOPs {flops / by_xla - 1:+.2%}, activations {taken / taken_by_xla - 1:+.0%} of XLA's")
  assert flops == pytest.approx(by_xla, rel=0.02)
  assert taken == pytest.approx(taken_by_xla, rel=0.3)
  assert sum(found.by_part().values()) == found.flops()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "expected"),
  [
    ("ct", {"forward": 1, "target": 1}),
    ("cd_heun", {"forward": 1, "target": 1, "teacher": 2}),
    ("sct", {"forward": 1, "jvp": 1}),
  ],
)
def test_flops_by_part_are_whole_evaluations(case, expected):
  section = {"name": "songunet", **UNET, "channel_mult": (1,), "model_channels": 32, "attn_resolutions": ()}
  config = config_of(CASES[case], Workload(section, (4, 4, 3), 6), 6)
  config.data.image_shape = (4, 4, 3)
  found = costs.Traced(of_config(config), 6).by_part()
  shares = {part: flops / found["forward"] for part, flops in found.items()}
  for part in ("forward", "jvp", "target", "teacher"):
    assert shares[part] == pytest.approx(expected.get(part, 0), abs=0.05), part
  assert shares["backward"] == pytest.approx(2, abs=0.1)


CONFIGS = our_configs()
REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
  "name",
  [
    "digits_edm.py",
    *(pytest.param(f"{name}.py", marks=pytest.mark.slow) for name in ("cifar10_ect", "imagenet64_cd")),
  ],
)
def test_configs_plan_in_seconds(name):
  """4 to 8 seconds alone on 2 cores; the bound leaves room for a busy machine."""
  begin = time.process_time()
  config = read_file(CONFIGS[name])
  if name.startswith("imagenet64"):
    config.data.image_shape = (64, 64, 3)
  found = plan(of_config(config), ACCELERATORS["h200"], 8, remat=False)
  taken = time.process_time() - begin
  print(f"{name}: {found.parameters:,} parameters, planned in {taken:.1f} s of processor time")
  assert taken < 30
  assert found.parameters > 1000 and all(value >= 0 for value in found.flops.values())
  assert found.flops["backward"] > 1.5 * found.flops["forward"] > 0
  assert found.hours > 0 and found.memory["activations"] > 0


def test_what_does_not_fit_is_told_with_what_would():
  config = tiny.config()
  config.batch_size = 96
  setting = of_config(config)
  device = ACCELERATORS["v5e"]
  roomy = plan(setting, device, 2)
  assert roomy.fits and not roomy.suggestions and roomy.at_a_time == 48
  fixed = sum(roomy.memory.values()) - roomy.memory["activations"]
  # room for a third of the images
  small = dataclasses.replace(device, memory=fixed + int(roomy.memory["activations"] * 0.34), usable=1.0)
  tight = plan(setting, small, 2)
  assert not tight.fits and 12 <= tight.most_at_a_time <= 17
  changes = [line.partition(":")[0] for line in tight.suggestions]
  assert "config.accumulation=3" in changes and f"config.batch_size={2 * tight.most_at_a_time}" in changes
  config.accumulation = 3
  assert plan(of_config(config), small, 2).fits
  text = "\n".join(report.lines(tight))
  assert "does not fit: batch 96 on 2 devices" in text and "would fit: config.accumulation=3" in text
  hopeless = plan(setting, dataclasses.replace(device, memory=1000), 2)
  assert len(hopeless.suggestions) == 1 and "more devices" in hopeless.suggestions[0]
  assert hopeless.most_at_a_time == 0 and "no batch would" in report.fitting(hopeless)


def test_duration_follows_rate_share_and_precision():
  config = tiny.config()
  config.num_images, config.run.num_steps = 1600, 0
  one = plan(of_config(config), ACCELERATORS["a100"], 1, mfu=0.5, remat=False)
  two = plan(of_config(config), ACCELERATORS["a100"], 2, mfu=0.25, remat=False)
  assert one.hours == pytest.approx(two.hours, rel=0.02) and two.steps == 100
  assert one.hours == pytest.approx(100 * one.flops_a_step / (19.5e12 * 0.5 * 3600))
  assert ACCELERATORS["h100"].rate("float32", "tensorfloat32") == 494.7e12
  assert ACCELERATORS["v6e"].rate("float32", "default") == 918e12
  assert ACCELERATORS["v6e"].rate("float32", "highest") == pytest.approx(153e12)


def test_devices_are_known_by_their_kind():
  class Device:
    def __init__(self, kind, limit=None):
      self.device_kind, self._limit = kind, limit

    def memory_stats(self):
      return None if self._limit is None else {"bytes_limit": self._limit}

  assert of_device(Device("TPU v5 lite"), 4) == ACCELERATORS["v5e"]
  assert of_device(Device("TPU v5p"), 4) == ACCELERATORS["v5p"]
  found = of_device(Device("NVIDIA A100-SXM4-40GB", 30 * 2**30), 4)
  assert (found.bfloat16, found.memory, found.usable) == (312e12, 30 * 2**30, 1.0)
  assert of_device(Device("Radeon"), 1) is None
  assert of_device(jax.devices()[0], 8).memory == accelerator("cpu").memory // 8


def test_images_are_known_from_the_config_or_the_name_of_the_data():
  config = default()
  for source, shape, classes in (
    ("tfds:cifar100:train", (32, 32, 3), 100),
    ("tfds:imagenet_resized/64x64:train[:10%]", (64, 64, 3), 1000),
    ("digits:test", (8, 8, 1), 10),
  ):
    config.data.source = source
    assert images_of(config) == (shape, classes, ())
  config.data.source, config.data.resolution = "folder:/no/such/folder", 48
  assert images_of(config)[0] == (48, 48, 3)
  config.data.resolution, config.data.image_shape = 0, (20, 20, 4)
  assert images_of(config)[0] == (20, 20, 4)
  config.data.image_shape, config.data.conditional = (), True
  with pytest.raises(
    UserError, match=r"config.data.image_shape = \(\): expected \(height, width, channels\)"
  ):
    images_of(config)


@pytest.mark.slow
def test_the_kept_plans_of_rows_are_what_is_planned(tmp_path):
  """Of a row with classes, one with a teacher, and one whose network only its file names."""
  rows = ["cifar10_edm.py:cond-ve", "cifar10_cd.py:l2", "cifar10_cd_jcm.py:l1"]
  command = [sys.executable, "launch/plans.py", *rows, f"--out={tmp_path / 'plans.json'}"]
  subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, timeout=600)
  now = read_plans(tmp_path / "plans.json")
  kept = {found.config: found for found in read_plans(REPO / "configs" / "results" / "rows" / "plans.json")}
  assert sorted(found.config for found in now) == sorted(rows)
  for found in now:
    before = kept[found.config]
    assert found.device_hours == pytest.approx(before.device_hours, rel=2e-3)
    assert found.memory_gb == pytest.approx(before.memory_gb, rel=2e-2)
    same = dataclasses.replace(found, device_hours=before.device_hours, memory_gb=before.memory_gb)
    assert same == before


CONFIG = """
from tests import tiny

def get_config():
  config = tiny.config()
  config.num_images = 4800
  config.run.num_steps = 0
  return config
"""


@pytest.fixture
def file(tmp_path) -> str:
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return str(path)


def test_the_command_prints_a_plan_and_its_json(file, capsys):
  assert cli.run(["plan", f"--config={file}", "--device=tpu7x", "--count=4", "--config.batch_size=24"]) == 0
  said = capsys.readouterr().out
  for part in (
    "devices: 4 x TPU7x, half a chip (data 4, fsdp 1)",
    "parameters: 161",
    "6 images at a time",
    "in 200 steps",
  ):
    assert part in said, part


def test_the_network_of_a_teacher_is_what_the_configs_file_says(tmp_path, capsys):
  path = tmp_path / "config.py"
  text = (
    "from tests import tiny\n"
    "TEACHER_NETWORK = {'name': 'toy', 'width': 5}\n"
    "def get_config():\n  c = tiny.config(tiny.CD)\n  c.network = {'name': 'teacher'}\n  return c\n"
  )
  path.write_text(text)
  assert cli.run(["plan", f"--config={path}", "--device=v5e"]) == 0
  said = capsys.readouterr().out
  width = tiny.config(tiny.CD)
  width.network = {"name": "toy", "width": 5}
  assert f"parameters: {plan(of_config(width), ACCELERATORS['v5e'], 1).parameters:,}\n" in said
  assert "assumed: the teacher's network is toy, as the config's file says (no --teacher)" in said
  path.write_text(text.replace("TEACHER_NETWORK", "OTHER"))
  assert cli.run(["plan", f"--config={path}"]) == 2
  assert "config.teacher.path" in capsys.readouterr().err


REMAT = {
  "songunet": ({"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}, (8, 8, 3), tiny.CT),
  "openai_unet": ({"channel_mult": (1, 2), "num_res_blocks": 1}, (8, 8, 3), tiny.CD),
  "edm2": ({"channel_mult": (1, 2), "num_blocks": 1}, (8, 8, 3), tiny.SCT),  # with a derivative in the loss
  "dit": ({"hidden_size": 48, "depth": 3, "num_heads": 2}, (8, 8, 4), None),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("network", "policy"),
  [("songunet", "blocks"), ("openai_unet", "products"), ("edm2", "blocks"), ("dit", "products")],
)
def test_what_remat_changes_is_what_a_run_with_it_holds(network, policy):
  section, shape, objective = REMAT[network]
  config = tiny.config(objective)
  config.network = {"name": network, **section, "remat_policy": policy}
  if network != "dit":
    config.network.model_channels = 32
  config.data.image_shape = shape
  setting, device = of_config(config), ACCELERATORS["v5e"]
  without = plan(setting, device, 1)
  config.network.remat = True
  with_it = plan(of_config(config), device, 1)
  assert with_it.activations["off"] == without.activations["off"]
  assert without.activations["on"] == pytest.approx(with_it.activations["on"], rel=0.1)
  assert without.activations["on"] < 0.95 * without.activations["off"]
  assert plan(of_config(config), device, 1, remat=False).activations["off"] is None


@pytest.mark.slow
def test_the_step_is_compiled_for_as_many_devices(file, capsys):
  arguments = ["plan", f"--config={file}", "--device=cpu", "--count=8", "--compile", "--json", "--mfu=0.1"]
  assert cli.run(arguments) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["parameters"] == 161 and found["steps"] == 300 and found["mfu"] == 0.1
  assert found["device_hours"] == pytest.approx(8 * 24 * found["days"])
  assert found["memory"]["params"] == 644 and found["fits"]
  assert found["compiled"]["arguments"] > 3 * 644 and found["compiled"]["temporaries"] > 0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--device=v5"], "--device = v5: expected 'v5"),
    (["--count=3"], "config.batch_size = 16: expected a multiple of 3 devices"),
    (["--count=4", "--config.mesh.fsdp=3"], "config.mesh.fsdp = 3: expected a divisor of the 4 devices"),
    (["--count=0"], "count"),
    (["--mfu=2"], "mfu"),
    (["--config.network.name=toyy"], "toy"),
    (["--count=1024", "--compile"], "--count = 1024: expected at most 512"),
  ],
)
def test_bad_input(file, arguments, message, capsys):
  assert cli.run(["plan", f"--config={file}", *arguments]) == 2
  said = capsys.readouterr()
  assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_no_config_is_one_line(capsys):
  assert cli.run(["plan"]) == 2
  assert "--config = : expected a config file" in capsys.readouterr().err
