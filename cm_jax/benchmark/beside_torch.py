"""The same network with the same weights in PyTorch, to be timed beside ours, in the same rounds.

Sampling starts from noise on the device and ends in uint8 pixels, a train step is denoising with Adam and one
average, as ours are. PyTorch is imported where it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import numpy as np

from cm_jax.benchmark.subjects import Subject
from cm_jax.benchmark.torch_net import Net, weights_of
from cm_jax.errors import UserError
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Heun
from cm_jax.types import Sampler

if TYPE_CHECKING:
  import torch

FORMATS = {"torch eager": "contiguous_format", "torch channels_last": "channels_last"}
PARITY = 1e-4  # relative to the largest output


def programs(
  subject: Subject, batch: int, sampler: Sampler | None, compiled: bool = False
) -> dict[str, Callable[[], None]]:
  """Return PyTorch's calls for what we time, by name: eager in both memory formats, and compiled.

  Raises:
    UserError: A network or a sampler that is not written here, or outputs that are not ours.
  """
  import torch

  if subject.model.network.get("dtype", "float32") != "float32":
    raise UserError("dtype", subject.model.network["dtype"], "float32 with --beside=torch")
  network = {**subject.model.network, "label_dim": subject.model.num_classes}
  made: dict[str, Callable[[], None]] = {}
  torch.set_num_threads(len(jax.local_devices()) if jax.default_backend() != "cpu" else _cores())
  for name, memory_format in FORMATS.items():
    net = Net(network, subject.model.image_shape[0])
    weights = weights_of(subject.model.params, memory_format)
    check_parity(subject, net, memory_format)
    kinds: dict[str, Callable[..., torch.Tensor]] = {name: net}
    if compiled and memory_format == "channels_last":
      kinds["torch.compile"] = torch.compile(net)
    for kind, function in kinds.items():
      made[kind] = _call(subject, function, weights, memory_format, batch, sampler)
  return made


def _cores() -> int:
  from cm_jax.data.sources.threads import cores

  return cores()


def check_parity(subject: Subject, net: Net, memory_format: str) -> None:
  """Compare F of two images with ours, for weights moved at random: some of the first ones are almost 0.

  Raises:
    UserError: It is another function.
  """
  import torch

  rng = np.random.default_rng(0)
  draw = lambda shape, scale: np.asarray(scale * rng.standard_normal(shape), np.float32)
  params = jax.tree.map(lambda leaf: np.asarray(leaf) + draw(leaf.shape, 0.05), subject.model.params)
  x, c_noise = draw((2, *subject.model.image_shape), 1.0), np.array([0.3, -0.7], np.float32)
  ours = np.asarray(jax.jit(subject.model.preconditioned.raw)(params, x, c_noise))
  with torch.inference_mode():
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    images = images.contiguous(memory_format=getattr(torch, memory_format))
    theirs = net(weights_of(params, memory_format), images, torch.tensor(c_noise))
  apart = float(np.abs(ours - theirs.numpy().transpose(0, 2, 3, 1)).max() / np.abs(ours).max())
  if not apart <= PARITY:
    raise UserError("beside", "torch", f"the same function as ours: outputs are {apart:.1e} apart")


def _scalings(sigma: torch.Tensor, data: float) -> tuple[torch.Tensor, ...]:
  """Return EDM's c_skip, c_out, c_in for sigma [B,1,1,1]."""
  total = sigma**2 + data**2
  return data**2 / total, sigma * data / total.sqrt(), 1 / total.sqrt()


def _call(
  subject: Subject,
  net: Callable[..., torch.Tensor],
  weights: dict[str, torch.Tensor],
  memory_format: str,
  batch: int,
  sampler: Sampler | None,
) -> Callable[[], None]:
  import torch

  height, width, channels = subject.model.image_shape
  shape, data = (batch, channels, height, width), subject.model.noise.sigma_data
  noise = lambda: torch.randn(shape).contiguous(memory_format=getattr(torch, memory_format))

  def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    c_skip, c_out, c_in = _scalings(sigma[:, None, None, None], data)
    return c_skip * x + c_out * net(weights, c_in * x, sigma.log() / 4)

  if sampler is None:
    return _train_step(denoise, weights, noise, shape, data)
  level = lambda sigma: torch.full((batch,), float(sigma))

  @torch.inference_mode()
  def sample() -> None:
    if isinstance(sampler, Heun):
      sigmas = [float(sigma) for sigma in np.asarray(sampler.levels())]
      x = noise() * sigmas[0]
      for t, r in itertools.pairwise(sigmas):
        drift = (x - denoise(x, level(t))) / t
        moved = x + (r - t) * drift
        if r:
          moved = x + (r - t) * (drift + (moved - denoise(moved, level(r))) / r) / 2
        x = moved
    elif isinstance(sampler, Multistep):
      x = torch.zeros(shape)
      for sigma in sampler.sigmas:
        x = denoise(x + sigma * noise(), level(sigma)).clamp(-1, 1)
    else:
      raise UserError("sampler", type(sampler).__name__, "multistep or heun with --beside=torch")
    ((x * 127.5 + 128).clamp(0, 255).to(torch.uint8)).permute(0, 2, 3, 1).contiguous()

  return sample


def _train_step(
  denoise: Callable[..., torch.Tensor],
  weights: dict[str, torch.Tensor],
  noise: Callable[[], torch.Tensor],
  shape: tuple[int, ...],
  data: float,
) -> Callable[[], None]:
  import torch

  params = list(weights.values())
  for param in params:
    param.requires_grad_(True)
  average = [param.detach().clone() for param in params]
  optimizer = torch.optim.Adam(params, lr=1e-4, foreach=True)
  images = torch.randint(0, 256, shape, dtype=torch.uint8)

  def step() -> None:
    x = images.float() / 127.5 - 1
    sigma = (torch.randn(shape[0]) * 1.2 - 1.2).exp()
    scale = sigma[:, None, None, None]
    weight = (scale**2 + data**2) / (scale * data) ** 2
    loss = (weight * (denoise(x + scale * noise(), sigma) - x) ** 2).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [param.grad for param in params if param.grad is not None]
    if bool(torch.isfinite(torch._foreach_norm(gradients)[0])):
      optimizer.step()
    torch._foreach_lerp_(average, [param.detach() for param in params], 1e-4)

  return step
