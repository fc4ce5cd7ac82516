"""The manifests of launch/gke against the schemas of what reads them, and the steps of the Dockerfile."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.fake import LAUNCH, REPO, Tools

# JobSet's own resource definition, without descriptions; the Job inside of it is Kubernetes' own.
JOBSET = json.loads((Path(__file__).parent / "jobset_v1alpha2.json").read_text())
KUBERNETES = "1.33"
RUN = [
  "train",
  "--config=configs/x.py",
  '--workdir=gs://b/one "two" \\three',
  "--config.data.class_names=('a: b',)",
]
TPU = [
  "--name=ect-2",
  "--image=r/p/cm_jax:tpu",
  "--accelerator=tpu-v6e-slice",
  "--topology=4x8",
  "--hosts=8",
  "--chips=4",
]
GPU = ["--name=ect", "--image=r/p/cm_jax:gpu", "--hosts=3", "--gpus=8"]


@pytest.fixture
def tools(tmp_path) -> Tools:
  return Tools(tmp_path)


def applied(tools: Tools, what: str, *options: str) -> list[dict]:
  done = tools.run("gke.sh", what, *options)
  assert done.returncode == 0, done.stderr
  ((tool, verb, flag, _),) = tools.calls()
  assert (tool, verb, flag) == ("kubectl", "apply", "--filename")
  (manifest,) = tools.files()
  return list(yaml.safe_load_all(manifest))


def container(jobset: dict) -> dict:
  (job,) = jobset["spec"]["replicatedJobs"]
  (found,) = job["template"]["spec"]["template"]["spec"]["containers"]
  return found


@pytest.mark.parametrize(
  ("what", "options"),
  [
    ("jobset_tpu", TPU),
    ("jobset_tpu", [*TPU, "--slices=3", "--queue=q", "--claim=runs"]),
    ("jobset_gpu", [*GPU, "--claim=runs"]),
  ],
)
def test_a_jobset_is_what_its_schemas_say(what, options, tools):
  (jobset,) = applied(tools, what, *options, "--", *RUN)
  jsonschema.validate(jobset, JOBSET)
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "x"},
    "spec": replicated["template"]["spec"],
  }
  kubernetes_validate.validate(job, KUBERNETES, strict=True)
  assert container(jobset)["args"] == RUN and container(jobset)["command"] == ["python", "-m", "cm_jax"]


def test_runs_lie_on_the_claim_that_is_named(tools):
  (jobset,) = applied(tools, "jobset_tpu", *TPU, "--claim=runs-2", "--", *RUN)
  (replicated,) = jobset["spec"]["replicatedJobs"]
  volumes = {v.pop("name"): v for v in replicated["template"]["spec"]["template"]["spec"]["volumes"]}
  assert volumes["data"] == {"persistentVolumeClaim": {"claimName": "runs-2"}}
  assert {"name": "data", "mountPath": "/data"} in container(jobset)["volumeMounts"]


def test_the_schema_sees_a_field_that_is_not_there(tools):
  (jobset,) = applied(tools, "jobset_tpu", *TPU, "--", *RUN)
  jobset["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(jobset, JOBSET)


def test_slices_hosts_and_chips_are_where_they_belong(tools):
  (jobset,) = applied(tools, "jobset_tpu", *TPU, "--slices=2", "--", *RUN)
  (replicated,) = jobset["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (2, 8, 8)
  assert container(jobset)["resources"]["limits"] == {"google.com/tpu": 4}
  selector = spec["template"]["spec"]["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-topology"] == "4x8"


@pytest.mark.parametrize(("what", "options"), [("jobset_tpu", TPU), ("jobset_gpu", GPU)])
def test_a_stopped_run_is_started_again_and_a_refused_one_is_not(what, options, tools):
  """Of a pod's exit status: the first rule that fits fails the Job with reason PodFailurePolicy; any other
  failure, with backoffLimit 0, with BackoffLimitExceeded."""
  (jobset,) = applied(tools, what, *options, "--max_restarts=7", "--", *RUN)
  (replicated,) = jobset["spec"]["replicatedJobs"]
  spec, policy = replicated["template"]["spec"], jobset["spec"]["failurePolicy"]
  assert spec["backoffLimit"] == 0 and policy["maxRestarts"] == 7
  action = {reason: rule["action"] for rule in policy["rules"] for reason in rule["onJobFailureReasons"]}

  def after(status: int) -> str:
    for rule in spec["podFailurePolicy"]["rules"]:
      codes = rule["onExitCodes"]
      assert codes["containerName"] == container(jobset)["name"]
      if (status in codes["values"]) == (codes["operator"] == "In"):
        return action["PodFailurePolicy"]
    return action["BackoffLimitExceeded"]

  assert {status: after(status) for status in (75, 134, 137, 143)} == dict.fromkeys(
    (75, 134, 137, 143), "RestartJobSet"
  )
  assert (after(1), after(2)) == ("FailJobSet", "FailJobSet")


def test_processes_on_gpus_find_the_first_by_its_name(tools):
  (jobset,) = applied(tools, "jobset_gpu", *GPU, "--", *RUN)
  variables = {item["name"]: item for item in container(jobset)["env"]}
  network, (replicated,) = jobset["spec"]["network"], jobset["spec"]["replicatedJobs"]
  host = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{network['subdomain']}"
  assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == f"{host}:12321" and network["enableDNSHostnames"]
  assert variables["JAX_NUM_PROCESSES"]["value"] == "3"
  assert "job-completion-index" in variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_rights_are_those_that_jax_needs_and_the_queue_is_whole(tools):
  account, role, binding = applied(tools, "rbac", "--namespace=team")
  for document in (account, role, binding):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert document["metadata"]["namespace"] == "team"
  assert {(*rule["resources"], *rule["verbs"]) for rule in role["rules"]} == {
    ("pods", "get", "list"),
    ("jobs", "get"),
  }
  assert binding["roleRef"]["name"] == role["metadata"]["name"]
  (jobset,) = applied(tools, "jobset_gpu", *GPU, "--", *RUN)
  pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
  flavor, cluster, local = applied(
    tools, "kueue", "--resource=google.com/tpu", "--quota=32",
    "--node_label=cloud.google.com/gke-tpu-topology", "--node_value=4x8",
  )  # fmt: skip
  (group,) = cluster["spec"]["resourceGroups"]
  assert flavor["spec"]["nodeLabels"] == {"cloud.google.com/gke-tpu-topology": "4x8"}
  assert group["flavors"][0]["name"] == flavor["metadata"]["name"]
  assert group["flavors"][0]["resources"] == [{"name": "google.com/tpu", "nominalQuota": 32}]
  assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
  assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["jobset_tpu", *TPU[1:-1], "--", *RUN], "missing: --chips, --name"),
    (["jobset_tpu", *TPU, "--slcies=2", "--", *RUN], "--slcies: expected one of:"),
    (["jobset_tpu", *TPU, "--hosts=two", "--", *RUN], "--hosts = 'two': expected a number"),
    (["jobset_tpu", *TPU, "--name=Ect_1", "--", *RUN], "--name = 'Ect_1': expected small letters"),
    (["jobset_tpu", *TPU, '--topology=2x4"\n  x: y', "--", *RUN], "--topology ="),
    (["jobset_tpu", *TPU], "missing: what to run"),
    (["jobset", *TPU, "--", *RUN], "jobset: expected one of: jobset_gpu"),
    (["jobset_tpu", "train"], "train: expected --NAME=VALUE"),
    (["delete"], "missing: --name"),
  ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_applied(arguments, said, tools):
  done = tools.run("gke.sh", *arguments)
  assert (done.returncode, tools.calls()) == (2, [])
  assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_prints_the_manifest(tools):
  done = tools.run("gke.sh", "jobset_tpu", *TPU, "--dry-run", "--", *RUN)
  assert tools.calls() == [] and container(yaml.safe_load(done.stdout))["args"] == RUN
  assert tools.run("gke.sh", "delete", "--name=ect", "--namespace=n").returncode == 0
  assert tools.calls() == [["kubectl", "delete", "jobset", "ect", "--namespace", "n"]]
  assert tools.run("gke.sh", "jobset_tpu", *TPU, "--", *RUN, rules=[("apply", 6, "")]).returncode == 6


def test_every_step_of_the_dockerfile_can_be_taken():
  """There is no docker here: what it copies is there, what it installs is an extra of setup.cfg."""
  text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.M)
  steps = [line.split(maxsplit=1) for line in text.splitlines() if line]
  assert {step for step, _ in steps} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "STOPSIGNAL", "ENTRYPOINT"}
  assert [step for step, _ in steps][:2] == ["ARG", "FROM"] and ["STOPSIGNAL", "SIGTERM"] in steps
  copied = [word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]]
  assert all((REPO / name).exists() for name in copied)
  needed = re.findall(r"file: (\S+)|license_files = (\S+)", (REPO / "setup.cfg").read_text())
  assert {name for pair in needed for name in pair if name} <= set(copied)
  (entry,) = [json.loads(rest) for step, rest in steps if step == "ENTRYPOINT"]
  assert entry == ["python", "-m", "cm_jax"]
  (install,) = [rest for step, rest in steps if step == "RUN"]
  assert shlex.split(install)[:4] == ["python", "-m", "pip", "install"]
