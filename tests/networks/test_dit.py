"""DiT against the published architecture in PyTorch, from the paper: there are no reference numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.networks import as_net, dit, init_params
from cm_jax.types import Condition
from tests import needs

torch = needs.torch()
F = torch.nn.functional


class Block(torch.nn.Module):
  def __init__(self, width, heads, ratio):
    super().__init__()
    self.heads = heads
    self.attn = torch.nn.ModuleDict(
      {"qkv": torch.nn.Linear(width, 3 * width), "proj": torch.nn.Linear(width, width)}
    )
    self.mlp = torch.nn.ModuleDict(
      {"fc1": torch.nn.Linear(width, int(width * ratio)), "fc2": torch.nn.Linear(int(width * ratio), width)}
    )
    self.adaLN_modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, 6 * width))

  def forward(self, x, c):
    shift1, scale1, gate1, shift2, scale2, gate2 = (
      a[:, None] for a in self.adaLN_modulation(c).chunk(6, dim=1)
    )
    h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    q, k, v = self.attn["qkv"](h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    x = x + gate1 * self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
    return x + gate2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](h), approximate="tanh"))


class TorchDiT(torch.nn.Module):
  def __init__(self, side, patch, channels, out_channels, width, depth, heads, ratio, classes):
    super().__init__()
    self.patch, self.grid, self.width = patch, side // patch, width
    self.x_embedder = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(channels, width, patch, patch)})
    mlp = torch.nn.Sequential(torch.nn.Linear(256, width), torch.nn.SiLU(), torch.nn.Linear(width, width))
    self.t_embedder = torch.nn.ModuleDict({"mlp": mlp})
    self.y_embedder = torch.nn.ModuleDict({"embedding_table": torch.nn.Embedding(classes + 1, width)})
    self.blocks = torch.nn.ModuleList([Block(width, heads, ratio) for _ in range(depth)])
    modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, 2 * width))
    self.final_layer = torch.nn.ModuleDict(
      {"linear": torch.nn.Linear(width, patch * patch * out_channels), "adaLN_modulation": modulation}
    )

  def positions(self):
    omega = 10000 ** (-torch.arange(self.width // 4, dtype=torch.float64) / (self.width // 4))
    axis = torch.arange(self.grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([axis.sin(), axis.cos()], 1)
    columns, rows = axis[None].expand(self.grid, -1, -1), axis[:, None].expand(-1, self.grid, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1)  # the column's half first

  def forward(self, x, t, y):
    h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.positions().to(x)
    phase = t[:, None] * torch.exp(-np.log(10000) * torch.arange(128) / 128).to(x)
    c = self.t_embedder["mlp"](torch.cat([phase.cos(), phase.sin()], 1)) + self.y_embedder["embedding_table"](
      y
    )
    for block in self.blocks:
      h = block(h, c)
    shift, scale = (a[:, None] for a in self.final_layer["adaLN_modulation"](c).chunk(2, dim=1))
    h = self.final_layer["linear"](F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    h = h.unflatten(1, (self.grid, self.grid)).unflatten(3, (self.patch, self.patch, -1))
    return torch.einsum("nhwpqc->nchpwq", h).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize(("patch", "ratio", "channels", "out_channels"), [(2, 4.0, 4, 4), (4, 3.0, 3, 6)])
def test_equals_the_published_architecture(patch, ratio, channels, out_channels):
  torch.manual_seed(0)
  theirs = TorchDiT(8, patch, channels, out_channels, 32, 2, 4, ratio, 5)
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  module = dit.DiT(
    img_resolution=8, in_channels=channels, out_channels=out_channels, label_dim=5, patch_size=patch,
    hidden_size=32, depth=2, num_heads=4, mlp_ratio=ratio,
  )  # fmt: skip
  shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), (8, 8, channels)))
  arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
  name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  assert set(arrays) == {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}

  def load(path, leaf):
    name = name_of(path)
    array = arrays[name]
    if array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2 and "table" not in name:
      array = array.T
    assert array.shape == leaf.shape
    return jnp.asarray(array)

  params = jax.tree_util.tree_map_with_path(load, shapes)
  rng = np.random.default_rng(0)
  x, t = rng.normal(size=(3, channels, 8, 8)).astype(np.float32), np.array([0.0, 7.5, 900.0], np.float32)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x), torch.from_numpy(t), torch.tensor([1, 4, 5])).numpy()
  condition = Condition(jnp.array([1, 4, -1]))
  y = jax.jit(as_net(module))(params, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(t), condition)
  np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, atol=2e-5 * np.abs(expected).max())
