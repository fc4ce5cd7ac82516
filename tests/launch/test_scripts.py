"""The scripts of launch/ against tools that only write down how they are called:
quoting, failures, clean-up."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.launch.fake import LAUNCH, Tools

RUN = [
  "train",
  "--config=configs/cifar10_ect.py",
  "--workdir=gs://bucket/a b",
  '--config.run.note=it\'s "so" $HOME',
]
MIG = [
  "--name=ect", "--project=my-project", "--zone=us-east5-b", "--machine-type=ct6e-standard-4t",
  "--topology=4x8", "--hosts=8", "--image=region/repo/cm_jax:v1", "--os-family=family",
]  # fmt: skip
VM = ["--name=ect", "--project=p", "--zone=us-west4-a", "--type=v5litepod-16", "--image=r/i:2", "--poll=0"]
# script, its options, the first words of what it runs
SCRIPTS = [
  (
    "gcluster.sh",
    [
      "--name=n",
      "--project=p",
      "--cluster=c",
      "--location=l",
      "--compute-type=t",
      "--image=i",
      "--topology=2x4",
    ],
    ["gcluster", "job", "submit"],
  ),
  (
    "xpk.sh",
    [
      "--name=n",
      "--project=p",
      "--zone=z",
      "--cluster=c",
      "--tpu-type=v5litepod-8",
      "--image=i",
      "--num-slices=2",
    ],
    ["xpk", "workload", "create"],
  ),
  (
    "sky.sh",
    ["--name=n", "--gpus=H100:8", "--extra=cuda", "--nodes=2", "--infra=gcp"],
    ["sky", "jobs", "launch"],
  ),
  ("tpu_mig.sh", MIG, ["gcloud", "--project=my-project"]),
  ("tpu_vm.sh", VM, ["gcloud", "compute", "tpus"]),
  ("local_multi.sh", ["--processes=2"], None),
]
ACTIVE = [("describe", 0, "ACTIVE")]


@pytest.fixture
def tools(tmp_path) -> Tools:
  return Tools(tmp_path)


def test_no_script_has_a_fault_that_shellcheck_knows():
  scripts = sorted(map(str, [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]))
  checker = Path(sys.executable).parent / "shellcheck"
  done = subprocess.run(
    [checker, "--external-sources", f"--source-path={LAUNCH}", *scripts], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("script", "options", "begins"), SCRIPTS)
def test_a_dry_run_prints_and_calls_nothing(script, options, begins, tools):
  done = tools.run(script, *options, "--dry-run", "--", *RUN)
  assert done.returncode == 0, done.stderr
  assert tools.calls() == []
  if begins:
    assert any(
      shlex.split(line)[: len(begins)] == begins for line in done.stdout.splitlines() if "#" not in line[:1]
    )


@pytest.mark.parametrize(("script", "options", "begins"), SCRIPTS)
def test_what_is_missing_or_unknown_is_named_and_nothing_is_called(script, options, begins, tools):
  name = options[0].partition("=")[0]
  for arguments, said in (
    ([*options[1:], "--", *RUN], f"missing: {name}"),
    ([*options, "--nmae=x", "--", *RUN], "--nmae = x: expected one of:"),
    ([*options, "train"], "train: expected --NAME=VALUE"),
    ([*options], "missing: what to run"),
  ):
    done = tools.run(script, *arguments)
    assert (done.returncode, tools.calls()) == (2, []), done
    assert said in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith(f"{script}: ")


@pytest.mark.parametrize(("script", "flag"), [("gcluster.sh", "--command="), ("xpk.sh", "--command=")])
def test_a_command_line_within_an_argument_reads_back_as_it_was(script, flag, tools):
  options = next(options for name, options, _ in SCRIPTS if name == script)
  assert tools.run(script, *options, "--", *RUN).returncode == 0
  (call,) = tools.calls()
  (command,) = [word.removeprefix(flag) for word in call if word.startswith(flag)]
  assert shlex.split(command) == ["python", "-m", "cm_jax", *RUN]
  failed = tools.run(script, *options, "--", *RUN, rules=[("c", 7, "")])
  assert failed.returncode == 7


def test_skypilots_job_reads_its_arguments_back(tools, tmp_path):
  assert tools.run("sky.sh", *SCRIPTS[2][1], "--", *RUN).returncode == 0
  (call,) = tools.calls()
  variables = dict(word.split("=", 1) for word in call if re.match("EXTRA=|ARGUMENTS=", word))
  assert variables["EXTRA"] == "cuda" and call[-1].endswith("launch/skypilot.yaml")
  assert call[call.index("--num-nodes") + 1] == "2"
  job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
  python = tmp_path / "cm_jax" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/usr/bin/env bash\necho "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"\n'
    'printf "%s\\n" "$@"\n'
  )
  python.chmod(0o755)
  nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
  done = subprocess.run(
    ["bash", "-c", job["run"]], env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **nodes, **variables},
    capture_output=True, text=True,
  )  # fmt: skip
  first, *words = done.stdout.splitlines()
  assert (first, words) == ("10.0.0.7:12321 2 1", ["-m", "cm_jax", *RUN]), done.stderr


CLOUD = [case for case in SCRIPTS if case[0] in ("gcluster.sh", "xpk.sh", "tpu_mig.sh", "tpu_vm.sh")]


@pytest.mark.parametrize(("script", "options", "begins"), CLOUD)
def test_what_would_be_lost_with_the_machine_is_refused(script, options, begins, tools):
  lost = ["train", "--config=c.py", "--workdir=/data/a b"]
  for words in (lost, ["sample", "--model=m", "--out", "runs/x.npz"], ["train", "--workdir=/datas/x"]):
    done = tools.run(script, *options, "--", *words)
    assert (done.returncode, tools.calls(), done.stderr.count("\n")) == (2, [], 1)
    assert words[-1].rpartition("=")[2] in done.stderr and "--ephemeral=yes" in done.stderr
  assert tools.run(script, *options, "--ephemeral=yes", "--dry-run", "--", *lost).returncode == 0
  mount = ["--nfs=10.0.0.2:/share"] if script.startswith("tpu") else ["--mounted=/data"]
  assert tools.run(script, *options, *mount, "--dry-run", "--", *lost).returncode == 0
  elsewhere = tools.run(script, *options, *mount, "--dry-run", "--", "train", "--workdir=/datas/x")
  assert elsewhere.returncode == 2


def test_gcluster_is_handed_the_mount_as_it_is(tools):
  options, volume = SCRIPTS[0][1], "--mount=my claim"
  done = tools.run("gcluster.sh", *options, volume, "--mounted=/w", "--", "train", "--workdir=/w/x")
  assert done.returncode == 0 and volume in tools.calls()[0]


@pytest.mark.parametrize(("mounted", "mounts"), [(True, True), (False, True), (False, False)])
def test_a_share_is_mounted_once_and_given_to_the_image(mounted, mounts, tools, tmp_path):
  run = ["train", "--workdir=/data/x"]
  assert tools.run("tpu_mig.sh", *MIG, "--nfs=10.1.2.3:/a share", "--", *run).returncode == 0
  (startup,) = tools.files()
  called = tmp_path / "called"
  fakes = {"sudo": f"printf '%s\\n' \"$*\" >>{called}; [ $1 != mount ] || exit {0 if mounts else 32}"}
  fakes["mount.nfs"] = ""
  fakes["mountpoint"] = f"exit {0 if mounted else 1}"
  found = image_runs(startup, [0], fakes)
  assert found == ((0, [run]) if mounts else (1, []))
  wanted = ["mkdir -p /data"] + ([] if mounted else ["mount -t nfs -o hard 10.1.2.3:/a share /data"])
  assert called.read_text().splitlines() == wanted


def test_a_managed_instance_group_is_made_in_order_and_starts_the_image(tools):
  assert tools.run("tpu_mig.sh", *MIG, "--service-account=me@x", "--", *RUN).returncode == 0
  calls = [" ".join(call) for call in tools.calls()]
  policy, template, group = calls
  assert "resource-policies create workload-policy ect --region=us-east5 " in policy
  assert "--accelerator-topology=4x8" in policy and "--service-account=me@x" in template
  assert "instance-templates create ect --machine-type=ct6e-standard-4t" in template
  assert "instance-groups managed create ect --zone=us-east5-b --size=8 --template=ect" in group
  assert "--workload-policy=projects/my-project/regions/us-east5/resourcePolicies/ect" in group
  (startup,) = tools.files()
  assert image_runs(startup, [75, 75, 0]) == (0, [RUN] * 3)
  assert image_runs(startup, [2]) == (2, [RUN])


def image_runs(
  script: str, statuses: list[int], fakes: dict[str, str] | None = None
) -> tuple[int, list[list[str]]]:
  """Run a start-up script with a docker that ends with one status after another, and other tools as given;
  return the script's status and what each container was given."""
  with tempfile.TemporaryDirectory() as folder:
    tools, state = Path(folder) / "bin", Path(folder) / "state"
    tools.mkdir()
    state.write_text("\n".join(map(str, statuses)) + "\n")
    fake = (
      f'#!/usr/bin/env python3\nimport sys, json\nlines = open("{state}").read().split()\n'
      f'open("{state}", "w").write("\\n".join(lines[1:]))\n'
      "print(json.dumps(sys.argv[1:]))\nsys.exit(int(lines[0]))\n"
    )
    (tools / "docker").write_text(fake)
    for name, body in {"docker-credential-gcr": "", **(fakes or {})}.items():
      (tools / name).write_text(f"#!/bin/bash\n{body}\n")
    for tool in tools.iterdir():
      tool.chmod(0o755)
    done = subprocess.run(
      ["bash", "-c", script], env={"PATH": f"{tools}:{os.environ['PATH']}"}, capture_output=True, text=True
    )
    calls = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    images = [next(i for i, word in enumerate(call) if "/" in word and word[0] != "-") for call in calls]
    return done.returncode, [call[i + 1 :] for call, i in zip(calls, images, strict=True)]


@pytest.mark.parametrize(
  ("fails", "removed"),
  [
    ("workload-policy ect", []),
    ("instance-templates create", ["resource-policies"]),
    ("managed create", ["instance-templates", "resource-policies"]),
  ],
)
def test_what_was_made_is_removed_when_a_later_step_fails(fails, removed, tools, tmp_path):
  done = tools.run("tpu_mig.sh", *MIG, "--", *RUN, rules=[(fails, 9, "")], TMPDIR=str(tmp_path))
  assert done.returncode == 9
  deleted = [call[4] for call in tools.calls() if "delete" in call]
  assert deleted == removed
  assert not list(tmp_path.glob("tmp.*"))


def test_deleting_a_group_goes_on_and_tells_what_failed(tools):
  done = tools.run("tpu_mig.sh", *MIG, "--delete=yes", rules=[("instance-templates delete", 4, "")])
  assert done.returncode == 4
  assert [call[4] for call in tools.calls()] == ["instance-groups", "instance-templates", "resource-policies"]


def test_a_tpu_vm_is_asked_for_used_and_given_back(tools):
  done = tools.run("tpu_vm.sh", *VM, "--spot=yes", "--", *RUN, rules=ACTIVE)
  assert done.returncode == 0
  create, describe, ssh, delete = tools.calls()
  assert create[3:6] == ["queued-resources", "create", "ect"] and create[-1] == "--spot"
  assert "--accelerator-type=v5litepod-16" in create and "describe" in describe
  assert (
    "--worker=all" in ssh and delete[3:6] == ["queued-resources", "delete", "ect"] and "--force" in delete
  )
  (command,) = [word.removeprefix("--command=") for word in ssh if word.startswith("--command=")]
  assert shlex_of_shell(command)[:2] == ["bash", "-c"]
  assert image_runs(shlex_of_shell(command)[2], [75, 0]) == (0, [RUN] * 2)


def shlex_of_shell(command: str) -> list[str]:
  """Return the words of a command as bash itself reads them: it also quotes as $'...'."""
  done = subprocess.run(
    ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
  )
  return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
  ("rules", "status"),
  [
    ([("create", 3, "")], 3),
    ([("describe", 0, "FAILED")], 2),
    ([("ssh", 1, ""), *ACTIVE], 1),
    ([("describe", 0, "WAITING")], 2),
  ],
)
def test_a_tpu_vm_is_given_back_whatever_fails(rules, status, tools):
  done = tools.run("tpu_vm.sh", *VM, "--wait=0", "--", *RUN, rules=rules)
  assert done.returncode == status
  assert "delete" in tools.calls()[-1]
  kept = tools.run("tpu_vm.sh", *VM, "--wait=0", "--keep=yes", "--", *RUN, rules=rules)
  assert kept.returncode == status and not any("delete" in call for call in tools.calls())


def test_tpu7x_is_refused_by_the_legacy_interface(tools):
  options = [option for option in VM if not option.startswith("--type")]
  done = tools.run("tpu_vm.sh", *options, "--type=tpu7x-8", "--", *RUN)
  assert done.returncode == 2 and "TPU7x" in done.stderr and tools.calls() == []


def test_an_image_is_built_for_each_kind_and_pushed_when_asked(tools):
  for kind, base, extra in (
    ("tpu", "jax-ai-image/tpu", "tpu,gcs"),
    ("gpu", "python:", "cuda,gcs"),
    ("cpu", "python:", ""),
  ):
    more = ["--extras=gcs"] if kind == "gpu" else []
    assert tools.run("image.sh", f"--for={kind}", "--tag=a/b:c", *more).returncode == 0
    (call,) = tools.calls()
    values = {
      word.partition("=")[0]: word.partition("=")[2] for word in call if re.match("BASE=|EXTRA=", word)
    }
    assert base in values["BASE"] and values["EXTRA"] == extra
  assert tools.run("image.sh", "--for=tpu", "--tag=a/b:c", "--push=yes").returncode == 0
  assert [call[1] for call in tools.calls()] == ["build", "push"]
  assert (
    tools.run("image.sh", "--for=tpu", "--tag=a/b:c", "--push=yes", rules=[("build", 5, "")]).returncode == 5
  )
  assert [call[1] for call in tools.calls()] == ["build"]
  assert "expected tpu, gpu or cpu" in tools.run("image.sh", "--for=ipu", "--tag=t").stderr


def test_a_stopped_slurm_job_is_queued_again_and_no_other(tools):
  how = {"PYTHON": "/my python", "SLURM_JOB_ID": "17"}
  requeue = [["scontrol", "requeue", "17"]]
  for status, restarts, then in (
    (75, "0", requeue),
    (75, "100", []),
    (2, "0", []),
    (0, "0", []),
    (137, "0", []),
  ):
    rules = [("srun", status, ""), ("scontrol", 1, "")]
    done = tools.run("slurm.sbatch", *RUN, rules=rules, SLURM_RESTART_COUNT=restarts, **how)
    first, *rest = tools.calls()
    assert (done.returncode, rest) == (status, then)
    assert first[first.index("/my python") :] == ["/my python", "-m", "cm_jax", *RUN]
  assert tools.run("slurm.sbatch").returncode == 2
  printed = tools.run("slurm.sbatch", "--dry-run", *RUN, **how)
  assert shlex_of_shell(printed.stdout.splitlines()[0])[-len(RUN) :] == RUN and tools.calls() == []


# Stands for python: process i does what its line says.
PYTHON = """#!/usr/bin/env bash
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*" >>"$0.log"
case $JAX_PROCESS_ID in
%s
esac
"""


def local(tmp_path: Path, lines: dict[int, str]) -> dict[str, str]:
  python = tmp_path / "python"
  python.write_text(PYTHON % "\n".join(f"  {i}) {line} ;;" for i, line in lines.items()))
  python.chmod(0o755)
  return {**os.environ, "PYTHON": str(python)}


def start(tmp_path: Path, lines: dict[int, str], *options: str) -> subprocess.Popen[str]:
  command = ["bash", str(LAUNCH / "local_multi.sh"), f"--processes={len(lines)}", *options, "--", *RUN]
  return subprocess.Popen(
    command, env=local(tmp_path, lines), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def test_local_processes_are_told_who_they_are(tmp_path):
  process = start(tmp_path, {0: "exit 0", 1: "exit 0", 2: "exit 0"}, "--port=4321")
  assert process.wait(timeout=20) == 0
  said = (tmp_path / "python.log").read_text().splitlines()
  assert sorted(said) == [f"{i} of 3 at 127.0.0.1:4321: -m cm_jax {' '.join(RUN)}" for i in range(3)]


STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"
MILD = "trap 'exit 75' TERM; while :; do sleep 0.1; done"


@pytest.mark.parametrize(
  ("lines", "status"),
  [
    ({0: MILD, 1: "sleep 0.3; exit 3"}, 3),
    ({0: STUBBORN, 1: MILD, 2: "exit 9"}, 9),
    ({0: "sleep 0.5", 1: "exit 75"}, 75),
  ],
)
def test_the_first_failure_ends_all(lines, status, tmp_path):
  begin = time.monotonic()
  process = start(tmp_path, lines, "--grace=1")
  assert process.wait(timeout=20) == status
  assert time.monotonic() - begin < 8
  assert not [line for line in processes() if str(tmp_path / "python") in line]


def processes() -> list[str]:
  return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all(number, tmp_path):
  trapped = (
    f"trap 'echo got >>\"$0.got\"; exit 75' {number.name.removeprefix('SIG')}; while :; do sleep 0.1; done"
  )
  process = start(tmp_path, {0: trapped, 1: trapped})
  while not (tmp_path / "python.log").exists() or len((tmp_path / "python.log").read_text().splitlines()) < 2:
    time.sleep(0.1)
  time.sleep(0.3)
  process.send_signal(number)
  assert process.wait(timeout=20) == 75
  assert (tmp_path / "python.got").read_text().split() == ["got", "got"]
