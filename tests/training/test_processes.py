"""Which job a process belongs to, by the environments of every place that is known."""

import http.server
import threading

import pytest

from cm_jax.errors import UserError
from cm_jax.training import processes
from cm_jax.training.processes import Job, find
from tests.training.test_peers import peers_port
from tests.training.test_train import run_cli

GKE = {
  "TPU_WORKER_HOSTNAMES": "run-slice-0-0.run,run-slice-0-1.run,run-slice-0-2.run,run-slice-0-3.run",
  "TPU_WORKER_ID": "2",
  "TPU_SKIP_MDS_QUERY": "true",
  "KUBERNETES_SERVICE_HOST": "10.0.0.1",
  "JOB_COMPLETION_INDEX": "2",
}
SLICES = {
  **GKE,
  "TPU_WORKER_HOSTNAMES": "run-slice-1-0.run,run-slice-1-1.run",
  "TPU_WORKER_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
  "MEGASCALE_NUM_SLICES": "3",
  "MEGASCALE_SLICE_ID": "1",
}
SLURM = {
  "SLURM_JOB_ID": "117",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_STEP_NUM_NODES": "2",
}
HAND = {"JAX_COORDINATOR_ADDRESS": "10.0.0.7:1234", "JAX_NUM_PROCESSES": "16", "JAX_PROCESS_ID": "5"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "6"}


@pytest.mark.parametrize(
  "environment, job",
  [
    ({}, Job("no job")),
    (GKE, Job("TPU on GKE", 4, 2, "run-slice-0-0.run:8482")),
    (
      GKE | {"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"} | {"TPU_WORKER_ID": "0"},
      Job("TPU on GKE", 2, 0, "a:8482"),
    ),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, Job("TPU on GKE", 1, 0, "localhost:8482")),
    (SLICES, Job("TPU on GKE, 3 slices", 6, 3, "run-slice-0-0.run:8482")),
    (SLURM, Job("Slurm", 4, 3)),
    (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Job("no job")),
    (HAND, Job("set by hand", 16, 5, "10.0.0.7:1234")),
    (HAND | GKE, Job("set by hand", 16, 5, "10.0.0.7:1234")),
    (
      HAND | SLURM | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
      Job("set by hand", 4, 3, "10.0.0.7:1234"),
    ),
    ({"JAX_NUM_PROCESSES": "1"} | POD | {"JOB_COMPLETION_INDEX": "0"}, Job("JAX_NUM_PROCESSES")),
    ({name: HAND[name] for name in processes.EXPLICIT[:2]} | POD, Job("set by hand", 16, 6, "10.0.0.7:1234")),
  ],
)
def test_every_place_is_found(environment, job):
  assert find(environment) == job


def test_hosts_of_compute_engine_come_from_the_metadata_server():
  attributes = {"worker-network-endpoints": "w0,w1,w2,w3", "agent-worker-number": "3\n"}
  assert find({}, attributes.get) == Job("TPU on Compute Engine", 4, 3, "w0:8482")
  attributes["worker-network-endpoints"] = "unknown:unknown:10.1.0.2,unknown:unknown:10.1.0.3"
  attributes["agent-worker-number"] = "1"
  assert find({}, attributes.get) == Job("TPU on Compute Engine", 2, 1, "10.1.0.2:8482")
  attributes["tpu-env"] = (
    "ACCELERATOR_TYPE: 'v5litepod-16'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    "MEGASCALE_COORDINATOR_ADDRESS: '10.9.0.4'\n"
  )
  assert find({}, attributes.get) == Job("TPU on Compute Engine, 2 slices", 4, 3, "10.9.0.4:8482")


def test_the_metadata_server_is_asked_as_google_wants_it(monkeypatch):
  class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      known = self.path == "/computeMetadata/v1/instance/attributes/agent-worker-number"
      self.send_response(200 if known and self.headers["Metadata-Flavor"] == "Google" else 404)
      self.end_headers()
      self.wfile.write(b"7")

    def log_message(self, *_): ...

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    assert processes.ask_metadata("agent-worker-number") == "7"
    assert processes.ask_metadata("worker-network-endpoints") is None
    server.shutdown()


@pytest.mark.parametrize(
  "environment, said",
  [
    (
      {"JAX_NUM_PROCESSES": "4"},
      "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID = : expected set, as JAX_NUM_PROCESSES is",
    ),
    (HAND | {"JAX_PROCESS_ID": "16"}, "JAX_PROCESS_ID = 16: expected an integer, 0 to 15"),
    (HAND | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES = four: expected an integer, 1 or more"),
    (HAND | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS = host: expected HOST:PORT"),
    (HAND | SLURM, "JAX_NUM_PROCESSES = 16: expected 4, as Slurm has it"),
    (
      HAND | SLURM | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "1"},
      "JAX_PROCESS_ID = 1: expected 3, as Slurm",
    ),
    (SLURM | {"SLURM_PROCID": "4"}, "SLURM_PROCID = 4: expected an integer, 0 to 3"),
    (GKE | {"TPU_WORKER_ID": "4"}, "TPU_WORKER_ID = 4: expected an integer, 0 to 3"),
    (GKE | {"TPU_WORKER_ID": ""}, "TPU_WORKER_ID = : expected an integer, 0 to 3"),
    (SLICES | {"MEGASCALE_SLICE_ID": "3"}, "MEGASCALE_SLICE_ID = 3: expected an integer, 0 to 2"),
    (
      SLICES | {"MEGASCALE_COORDINATOR_ADDRESS": ""},
      "MEGASCALE_COORDINATOR_ADDRESS = : expected the first host",
    ),
  ],
)
def test_what_cannot_be_is_refused_by_name(environment, said):
  with pytest.raises(UserError) as error:
    find(environment)
  assert str(error.value).startswith(said)


def test_an_indexed_job_needs_the_package_that_asks_it(monkeypatch):
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES = : expected set.*jax\[k8s\]"):
    find(POD)
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
  assert str(find(POD)) == "an indexed Job of Kubernetes: as many processes as it says"


def test_tasks_of_slurm_outside_srun_are_one_process_and_that_is_said(capsys):
  batch = {name: text for name, text in SLURM.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
  assert find(batch) == Job("no job")
  assert "SLURM_NTASKS = 4, but not inside srun: this is one process" in capsys.readouterr().err


@pytest.mark.slow
def test_who_waits_for_nobody_gives_up_in_one_line():
  job = ("--num_processes=2", "--process_id=0", f"--coordinator=127.0.0.1:{peers_port()}", "--join_timeout=2")
  process = run_cli("train-features", "--out=nowhere", *job)
  output = process.communicate(timeout=60)[0].strip().splitlines()
  assert process.returncode == 2
  assert "process 0 of 2" in output[0] and "all processes started within 2 s of each other" in output[1]
  assert len(output) == 2
