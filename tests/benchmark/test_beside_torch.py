"""`benchmark --beside=torch`: the same function in PyTorch, where that is installed."""

import pytest

from cm_jax import cli
from cm_jax.benchmark import subjects, sweep
from cm_jax.benchmark.cases import WORKLOADS, Workload
from cm_jax.errors import UserError
from tests import needs

NETWORK = {"name": "songunet", "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "dropout": 0.0}
DDPMPP = Workload({**NETWORK, "attn_resolutions": (4,)}, image_shape=(8, 8, 3), batch_size=4)


@pytest.fixture
def subject(monkeypatch):
  needs.torch()
  monkeypatch.setitem(WORKLOADS, "small", DDPMPP)
  return subjects.of_network("small")


@pytest.mark.slow
def test_every_call_runs_and_is_ours(subject):
  from cm_jax.benchmark import beside_torch

  for sampler in (sweep.sampler_of(subject.model, 2), sweep.sampler_of(subject.model, 5), None):
    calls = beside_torch.programs(subject, 4, sampler)  # compares outputs
    assert list(calls) == ["torch eager", "torch channels_last"]
    for call in calls.values():
      call()


@pytest.mark.slow
def test_another_function_is_refused(subject):
  from cm_jax.benchmark import beside_torch, torch_net

  net = torch_net.Net({**subject.model.network, "attn_resolutions": ()}, 8)
  with pytest.raises(UserError, match="the same function as ours"):
    beside_torch.check_parity(subject, net, "channels_last")


@pytest.mark.parametrize(
  "fields", [{"embedding_type": "fourier"}, {"dropout": 0.1}, {"resample_filter": (1, 3, 3, 1)}]
)
def test_networks_that_are_not_written_are_refused(fields):
  needs.torch()
  from cm_jax.benchmark import torch_net

  with pytest.raises(UserError, match=next(iter(fields))):
    torch_net.Net({**NETWORK, **fields}, 8)


def test_bfloat16_is_refused_before_work_starts(capsys):
  assert cli.run(["benchmark", "--beside=torch", "--dtype=bfloat16"]) == 2
  assert "--dtype = bfloat16: expected float32" in capsys.readouterr().err
