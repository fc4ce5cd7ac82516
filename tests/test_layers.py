"""The shape of the code: layers, what an import needs and starts, the size of modules, one job a config
key."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cm_jax import config as config_lib

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "cm_jax"
LAYERS = {
  "types": 0, "models": 0, "config": 0, "errors": 0, "notices": 0, "outside": 0, "version": 0,
  "coordination": 0, "meetings": 0,
  "storage": 1, "diffusion": 1, "networks": 2,
  "objectives": 3, "sampling": 3, "data": 3, "convert": 3, "training": 4, "evaluation": 4, "assembly": 5,
  "build": 6, "benchmark": 6, "cli": 7, "__main__": 8,
}  # fmt: skip
# Where something of other people's may or may not have an attribute: the user's own data, Pillow's images,
# JAX's devices.
FOREIGN = ("cm_jax.data.sources.python", "cm_jax.data.sources.decoding", "cm_jax.benchmark.records")
# What may be missing: all but jax, flax, optax, orbax, chex and ml-collections, and what these bring along.
OPTIONAL = (
  "grain", "tensorflow", "tensorflow_datasets", "sklearn", "scipy.optimize", "PIL", "tqdm", "tensorboardX",
  "matplotlib", "safetensors", "torch", "diffrax", "clu", "wandb", "huggingface_hub",
  "s3fs", "gcsfs", "fsspec",
)  # fmt: skip


def modules() -> dict[str, Path]:
  return {
    ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
  }


def imported(path: Path) -> set[str]:
  """Return what a file imports of cm_jax, anywhere in it: a function's imports count as much as the
  module's."""
  names: set[str] = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names.add(node.module or "")
      if node.module == "cm_jax":
        names |= {f"cm_jax.{alias.name}" for alias in node.names}
  return {name for name in names if name.startswith("cm_jax.")}


# What may look sideways or up all the same: the readers are audited once, and evaluation reads weights with
# them.
ALLOWED = {("evaluation", "cm_jax.convert.readers")}


def violations(found: dict[str, set[str]]) -> list[str]:
  wrong = []
  for module, imports in found.items():
    package = module.split(".")[1]
    for name in imports:
      other = name.split(".")[1]
      if other not in LAYERS or other == package:
        continue
      if any(package == who and name.startswith(what) for who, what in ALLOWED):
        continue
      is_sibling = LAYERS[other] == LAYERS[package] > 0
      if LAYERS[other] > LAYERS[package] or is_sibling or (package == "convert" and LAYERS[other] > 2):
        wrong.append(f"{module} (layer {LAYERS[package]}) imports {name} (layer {LAYERS[other]})")
  return wrong


def test_no_module_imports_a_higher_layer_or_a_sibling_package():
  found = {name: imported(path) for name, path in modules().items() if name != "cm_jax"}
  assert {name.split(".")[1] for name in found} <= set(LAYERS)
  assert violations(found) == []


def test_the_layer_test_sees_violations():
  assert violations({"cm_jax.diffusion.noise": {"cm_jax.networks"}})
  assert violations({"cm_jax.sampling.generate": {"cm_jax.data.augment"}})
  assert not violations({"cm_jax.training.loop": {"cm_jax.data", "cm_jax.training.step"}})


def test_modules_stay_small():
  lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
  assert {name: count for name, count in lines.items() if count > 300 and name != "cm_jax.types"} == {}


def strings(path: Path) -> list[str]:
  """Return the strings of a module outside its docstrings, f-strings in pieces."""
  tree = ast.parse(path.read_text())
  docs = set()
  for node in ast.walk(tree):
    if (
      isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
      and ast.get_docstring(node, clean=False) is not None
    ):
      docs.add(id(node.body[0].value))
  found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
  return [node.value for node in found if id(node) not in docs]


def test_below_assembly_nobody_knows_the_config_or_the_command_line():
  knowing = re.compile(r"\bconfig\.(?!json)[a-z]|--[a-z]")  # config.json is a file's name
  below = {
    name: path for name, path in modules().items() if name.count(".") and LAYERS[name.split(".")[1]] < 5
  }
  found = {name: [text for text in strings(path) if knowing.search(text)] for name, path in below.items()}
  assert {name: texts for name, texts in found.items() if texts} == {}


def test_nothing_is_guessed_from_attributes():
  """No hasattr and no three-argument getattr: what a component may have is in its protocol."""
  arguments = {"hasattr": 2, "getattr": 3}
  guesses = [
    f"{name}:{node.lineno}"
    for name, path in modules().items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if len(node.args) >= arguments.get(node.func.id, 99)
  ]
  assert [guess for guess in guesses if guess.split(":")[0] not in FOREIGN] == []


def test_the_type_checker_is_silenced_rarely():
  assert sum(path.read_text().count("type: ignore") for path in modules().values()) <= 8


def test_every_module_imports_without_the_optional_packages_and_starts_no_backend():
  names = [name for name in modules() if name != "cm_jax.__main__"]
  program = f"""
import importlib, importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if any(name == blocked or name.startswith(blocked + ".") for blocked in {OPTIONAL!r}):
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in {names!r}:
  importlib.import_module(name)
import cm_jax
for name in cm_jax.__all__:
  getattr(cm_jax, name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "an import started a backend"
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr


def leaves(section: dict, prefix: str = "") -> list[str]:
  return [
    leaf
    for key, value in section.items()
    for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
  ]


@functools.cache
def read_names() -> set[str]:
  """Return every attribute that is read, and every string subscript, anywhere but in config.py."""
  names: set[str] = set()
  for name, path in modules().items():
    if name == "cm_jax.config":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.add(node.attr)
      elif isinstance(node, ast.FunctionDef):  # a factory's parameters, which mypy and ruff know to be used
        names |= {argument.arg for argument in node.args.args + node.args.kwonlyargs}
  return names


@pytest.mark.parametrize("key", leaves(config_lib.default().to_dict()))
def test_every_config_key_is_read(key):
  name = key.split(".")[-1]
  steps = name.removesuffix("_images") + "_steps"
  assert name == "name" or {name, steps} & read_names(), f"config.{key} is read by nothing"
