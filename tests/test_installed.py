"""What a person has who installs a wheel and works in a folder of their own, without a way to the network:
the commands, the configs and the models that come with cm_jax, from the installed place."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

REPO = Path(__file__).parents[1]
# one worker: the wheel is built once
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]
NOWHERE = "http://127.0.0.1:9"  # where nothing listens


def done(*command: str | Path, **how) -> str:
  """Run a command to its end and return what it prints."""
  ended = subprocess.run(command, capture_output=True, text=True, timeout=600, **how)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
  """The wheel of this source, built from a copy of it: an old build/ of the checkout would get into it."""
  source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
  for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(REPO / name, source)
  shutil.copytree(REPO / "cm_jax", source / "cm_jax", ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copytree(REPO / "configs" / "results" / "weights", source / "configs" / "results" / "weights")
  for config in (REPO / "configs").glob("*.py"):
    shutil.copy(config, source / "configs")
  # isolated: a new environment has no setuptools, or one of before bdist_wheel was in it; pip fetches ours
  done(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source)
  (built,) = out.glob("*.whl")
  return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
  """The Python of a new environment with the wheel, which takes the packages that it needs from this one."""
  folder = tmp_path_factory.mktemp("environment")
  done(sys.executable, "-m", "venv", "--without-pip", folder)
  python = folder / "bin" / "python"
  done(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
  ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
  (Path(done(python, "-c", ask).strip()) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
  return python


def alone(home: Path, **more: str) -> dict[str, str]:
  """Return the environment of a person who has nothing of cm_jax's but what is installed."""
  ours = ("PYTHONPATH", "CM_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
  kept = {name: value for name, value in os.environ.items() if name not in ours}
  proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), NOWHERE)
  return {**kept, **proxies, "no_proxy": "", "HOME": str(home), "PYTHONNOUSERSITE": "1", **more}


def test_a_new_installation_samples_without_network_or_training(python, tmp_path):
  how = {"cwd": tmp_path, "env": alone(tmp_path)}
  where = done(python, "-c", "import cm_jax; print(cm_jax.__file__)", **how)
  assert Path(where.strip()).is_relative_to(python.parents[1])
  done(python, "-m", "cm_jax", "sample", "--model=digits-cd", "--num=64", "--out=x.png", **how)
  with PIL.Image.open(tmp_path / "x.png") as grid:
    assert min(grid.size) >= 8 * 64 and np.asarray(grid).std() > 20  # 8 rows of 64-pixel tiles, with digits


def test_its_configs_train_from_its_models(python, tmp_path):
  how = {"cwd": tmp_path, "env": alone(tmp_path)}
  dry = done(
    python, "-m", "cm_jax", "train", "--config=digits_cd", "--teacher=digits-edm", "--dry_run", **how
  )
  assert "--config.objective.drift" in dry and not list(tmp_path.glob("runs*"))
  small = ["--config.network=toy", "--config.run.num_steps=1", "--config.run.num_samples=0", "--noprogress"]
  done(python.parent / "cm_jax", "train", "--config=digits_edm", "--workdir=runs/mine", *small, **how)
  assert json.loads((tmp_path / "runs" / "mine" / "config.json").read_text())["batch_size"] == 64
  done(
    python.parent / "cm_jax",
    "sample",
    "--workdir=runs/mine",
    "--num_steps=1",
    "--num=1",
    "--out=y.png",
    **how,
  )
  assert (tmp_path / "y.png").is_file()


def test_a_folder_of_packages_has_all_of_it_too(wheel, tmp_path):
  """`pip install --target`, which knows no environment."""
  target = tmp_path / "packages"
  done(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
  how = {"cwd": tmp_path, "env": alone(tmp_path, PYTHONPATH=str(target))}
  ask = "from cm_jax.storage.published import shipped; print(*shipped().values(), sep='\\n')"
  folders = [Path(line) for line in done(sys.executable, "-c", ask, **how).splitlines()]
  assert {"digits-edm", "digits-cd", "digits-ect"} <= {folder.name for folder in folders}
  assert all(folder.is_relative_to(target) for folder in folders)
  wanted = ("--config=digits_cd", "--teacher=digits-edm", "--config.run.num_steps=7", "--dry_run")
  assert "--config.run.num_steps=7" in done(sys.executable, "-m", "cm_jax", "train", *wanted, **how)
