"""What a person types in other ways than --flag=value, and what their shell says to JAX."""

from pathlib import Path

import jax
import pytest
from absl import flags

from cm_jax import cli, errors
from cm_jax.assembly.complete import complete
from cm_jax.assembly.method import assemble
from cm_jax.cli import config_flags, environment, train
from cm_jax.notices import progress_bar
from cm_jax.storage import run as store
from cm_jax.version import __version__
from tests.cli.weights import weights_folder

CONFIGS = Path(__file__).parents[2] / "configs"


def said(capsys, *arguments: str, status: int = 2) -> str:
  capsys.readouterr()
  assert cli.run(arguments) == status
  captured = capsys.readouterr()
  assert "Traceback" not in captured.err
  return captured.err if status else captured.out


def test_version(capsys):
  shown = said(capsys, "--version", status=0)
  assert shown.startswith(f"cm_jax {__version__} (jax {jax.__version__}")


@pytest.mark.parametrize(
  "called, shown", [("/opt/bin/cm_jax", "cm_jax sample "), ("m.py", "python -m cm_jax s")]
)
def test_help_names_the_program_as_it_was_called(capsys, monkeypatch, called, shown):
  monkeypatch.setattr("sys.argv", [called])
  for arguments in (("sample", "--help"), ("--help",)):
    text = said(capsys, *arguments, status=0)
    assert f"usage: {shown.split(' s')[0]} " in text
    assert ("python -m" in text) == ("python -m" in shown)
  assert f"  {shown}" in said(capsys, "sample", "--help", status=0)


@pytest.mark.parametrize("key", ["batch_size", "noise.rho"])
def test_values_after_a_space(capsys, tmp_path, key):
  config = tmp_path / "config.py"
  config.write_text("from cm_jax.config import default as get_config\n")
  spaced = ("train", "--config", str(config), "--workdir", str(tmp_path / "run"), f"--config.{key}")
  for value in ("-1", "-0.5", "many"):
    error = said(capsys, *spaced, value)
    assert f"config.{key} = {value}" in error and error.count("\n") == 1
  assert f"--config.{key} = : expected a value: --config.{key}=VALUE" in said(capsys, *spaced)
  assert f"--config.{key} = : expected a value" in said(capsys, *spaced, "--noprogress")
  assert not (tmp_path / "run").exists()


def test_home(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "out.zip").mkdir()
  assert f"--out = {tmp_path}/out.zip: expected a .zip file" in said(
    capsys, "sample", "--workdir=~/run", "--out", "~/out.zip"
  )
  assert f"model = {tmp_path}/none" in said(capsys, "sample", "--model=~/none", "--out=x.npz")


def test_settings_that_would_change_a_run_are_set_aside(capsys, monkeypatch):
  before = jax.config.jax_default_prng_impl
  try:
    jax.config.update("jax_default_prng_impl", "rbg")
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    environment.keep_ours()
    assert jax.config.jax_default_prng_impl == "threefry2x32"
  finally:
    jax.config.update("jax_default_prng_impl", before)
  assert "JAX_DEFAULT_PRNG_IMPL = rbg is set aside" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["Unable to initialize backend 'mps': none", ""])
def test_a_platform_that_is_not_there(monkeypatch, reason):
  def no_devices():
    raise RuntimeError(reason) if reason else AssertionError

  monkeypatch.setattr(jax, "devices", no_devices)
  monkeypatch.setenv("JAX_PLATFORMS", "mps")
  with pytest.raises(errors.UserError, match="JAX_PLATFORMS = mps: expected cpu"):
    environment.check_platform()


def test_a_home_folder_that_cannot_be_written_has_no_cache(monkeypatch, capsys, tmp_path):
  monkeypatch.setenv("HOME", "/proc/none")
  for name in ("CM_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR"):
    monkeypatch.delenv(name, raising=False)
  environment.keep_programs()
  assert capsys.readouterr().err == ""
  monkeypatch.setenv("CM_JAX_CACHE", "/proc/none")
  environment.keep_programs()
  assert capsys.readouterr().err.startswith("cm_jax: CM_JAX_CACHE = /proc/none: ")
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path))
  tmp_path.chmod(0o777)
  with pytest.raises(errors.UserError, match="only you can write"):
    environment.keep_programs()


def test_a_number_of_steps_behind_a_config_that_takes_no_argument(tmp_path):
  config = config_flags.read_file(f"{CONFIGS}/digits_ect.py:24")
  assert config.num_images == 24 * config.batch_size
  file = tmp_path / "takes.py"
  file.write_text(
    "from cm_jax.config import default\n"
    "def get_config(text='7'):\n  c = default()\n  c.seed = len(text)\n  return c\n"
  )
  assert config_flags.read_file(f"{file}:three").seed == 5 and config_flags.read_file(str(file)).seed == 1
  for wrong in ("x", "0", "-3", "1.5", "1e3"):
    with pytest.raises(errors.UserError, match=rf"--config = .*:{wrong}: expected .* a number of steps"):
      config_flags.read_file(f"{CONFIGS}/digits_ect.py:{wrong}")


def overridden(*arguments: str, name: str = "digits_cd"):
  config = config_flags.read_file(f"{CONFIGS}/{name}.py")
  return config_flags.override(config, [f"--config.{argument}" for argument in arguments])


def test_a_component_is_given_by_name_or_as_a_section():
  network = overridden("network={'name': 'dit', 'patch_size': 4}", "network.depth=2").network.to_dict()
  assert network == {"name": "dit", "patch_size": 4, "depth": 2}
  assert overridden('network={"name": "teacher"}').network.to_dict() == {"name": "teacher"}
  assert overridden("objective.distance={'name': 'pseudo_huber', 'c': 0.07}").objective.distance.c == 0.07
  assert overridden("optimizer.name=adamw").optimizer.learning_rate  # stays, as it is a field of both
  named = overridden("network.name=edm2")  # with the fields of the one before
  with pytest.raises(errors.UserError, match=r"config.network.\w+ = .*; a section given as a name"):
    assemble(named, (8, 8, 1), 0)
  for wrong in ("{'patch_size': 4}", "{dit", "{'name': 3}", "{1, 2}"):
    with pytest.raises(errors.UserError, match="--config.network = .*a name, or a section such as"):
      overridden(f"network={wrong}")


def test_what_dry_run_lists_can_be_set():
  levels = overridden("sigmas_by_nfe.2=(80.0, 1.1)", "sigmas_by_nfe.4=80,9,2,0.5").sigmas_by_nfe
  assert levels.to_dict() == {"2": (80.0, 1.1), "4": (80, 9, 2, 0.5)}
  averages = overridden("averages.wide=power", "averages.wide.sigma_rel=0.15", "averages.ema.mu=0.9").averages
  assert averages.wide.to_dict() == {"name": "power", "sigma_rel": 0.15} and averages.ema.mu == 0.9
  for wrong in ("averages.emma.mu=0.9", "sigmas_by_nfe.3.x=1", "data.new=1"):
    with pytest.raises(errors.UserError, match="expected"):
      overridden(wrong)


def test_a_key_that_stands_elsewhere_is_named_with_its_place():
  with pytest.raises(errors.UserError, match="learning_rate = 1: expected 'config.optimizer.learning_rate'"):
    overridden("learning_rate=1")
  with pytest.raises(errors.UserError, match=r"--config.name = x: expected one of: accumulation"):
    overridden("name=x")  # many have one


@pytest.mark.parametrize("flag", ["--skip-corrupt", "--skip_corrupt", "--noskip_corrupt"])
def test_flags_are_typed_with_hyphens_or_underscores(capsys, flag):
  assert "--source = : expected" in said(capsys, "data", "prepare", flag)


def test_an_unknown_flag_is_told_with_its_value_alone(capsys):
  for flag, shown in (("--workdr=a/b=c", "a/b=c"), ("--workdr", "")):
    assert f" --workdr = {shown}: expected '--workdir'" in said(capsys, "train", flag)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_drawn_over_on_a_terminal_only(capsys, monkeypatch, terminal):
  monkeypatch.setattr("cm_jax.notices.SECONDS", 0.0)
  monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
  with progress_bar(total=3, desc="drawing", unit="img", mininterval=0) as bar:
    for value in ("a", "b", "c"):
      bar.update()
      bar.set_postfix(found=value)
  text = capsys.readouterr().err
  assert ("\r" in text) == terminal
  last = text.replace("\r", "\n").strip().splitlines()[-1]
  assert last.startswith("drawing: ") and "found=c" in last and ("3 of 3" in last) != terminal


def test_a_teacher_may_become_a_weights_folder(tmp_path):
  """The step that a run took its teacher at is one of a run; what it is now its content says."""
  config = overridden("teacher.path=runs/edm", "teacher.step=1200")
  store.write_config(tmp_path / "run", complete(config), begins=True)
  folder = weights_folder(tmp_path / "edm", precond="edm", kind="diffusion")
  values = flags.FlagValues()
  train.define(values)
  for teacher, step in ((str(folder), -1), (str(tmp_path / "moved"), 1200)):
    values(["train", f"--workdir={tmp_path / 'run'}", f"--teacher={teacher}"])
    found = train.read(values, []).teacher
    assert (found.path, found.step) == (teacher, step)


@pytest.mark.parametrize(
  ("flag", "error"),
  [
    ("--seed=-3", "--seed = -3: expected an integer in the range [0, 4294967295]"),
    ("--num=many", "--num = many: expected a positive integer"),
    ("--guidance=-0.5", "--guidance = -0.5: expected a non-negative number"),
    ("--state=float16", "--state = float16: expected 'float64' (did you mean it?)"),
    ("--clip=perhaps", "--clip = perhaps: expected true or false"),
  ],
)
def test_a_wrong_value_is_told_of_its_flag_alone(capsys, flag, error):
  assert f"cm_jax sample: {error}" in said(capsys, "sample", "--workdir=runs/x", flag, "--out=x.npz")
