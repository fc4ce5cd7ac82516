"""Published files of Inception-2015: read without running anything, each array in its place, or one line."""

import io
import itertools
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from cm_jax import cli
from cm_jax.convert import inception as published
from cm_jax.convert.readers.pickles import Bounded, Refused
from cm_jax.convert.readers.torchscript import read_torchscript
from cm_jax.errors import UserError
from cm_jax.networks import inception, inception_units
from tests import needs
from tests.convert import writers
from tests.convert.writers import Built, Call, Name


def torch_layout(name, shape):
  return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def state_dict():
  """All arrays by torch-fidelity's names in PyTorch's layout; a number for each array, no memory."""
  numbered = enumerate(inception.shapes().items())
  return {name: np.broadcast_to(np.float32(i), torch_layout(name, shape)) for i, (name, shape) in numbered}


def as_graph(theirs, leaves, prefix="layers."):
  """The same by the names of TensorFlow's graph."""
  ours = {unit: path for path, unit in published.graph_names().items()}
  found = {}
  for name, array in theirs.items():
    owner = next((unit for unit in ours if name.startswith(f"{unit}.")), None)
    if owner is None:
      found[name.replace("fc.", "output.")] = array
    else:
      kind = name.removeprefix(f"{owner}.")
      if leaves[kind] is not None:
        found[f"{prefix}{ours[owner]}.{leaves[kind]}"] = array
  return found


PLAIN = {kind: kind for kind in ("conv.weight", *(f"bn.{each}" for each in inception._NORM))}
GRAPH = {
  "conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var",
  "bn.weight": None,
}  # fmt: skip


def test_names_of_torch_fidelity_behind_a_prefix():
  given = state_dict()
  given["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.zeros((), np.int64)
  found = published.by_our_names({f"module.{name}": array for name, array in given.items()})
  arrays = published.stored_layout(found)
  assert arrays.keys() == inception.shapes().keys()
  for i, (name, shape) in enumerate(inception.shapes().items()):
    assert arrays[name].shape == shape and arrays[name].flat[0] == i


@pytest.mark.parametrize("leaves", [PLAIN, GRAPH])
def test_names_of_the_graph(leaves):
  given = state_dict()
  found = published.by_our_names(as_graph(given, leaves))
  assert found.keys() == given.keys()
  for name, array in given.items():
    if leaves is GRAPH and name.endswith(".bn.weight"):
      assert (found[name] == 1).all()  # no gain
    else:
      assert found[name].shape == array.shape and found[name].flat[0] == array.flat[0], name


def test_a_folded_convolution():
  given = as_graph(
    state_dict(), {**GRAPH, "bn.bias": "bias", "bn.running_mean": None, "bn.running_var": None}
  )
  found = published.stored_layout(published.by_our_names(given))
  arrays = {name: array for name, array in found.items() if name.startswith("Mixed_6d.branch1x1")}
  scale = arrays["Mixed_6d.branch1x1.bn.weight"] / np.sqrt(
    arrays["Mixed_6d.branch1x1.bn.running_var"].astype(np.float64) + inception.EPS
  )
  np.testing.assert_allclose(scale, 1, rtol=1e-7)
  assert (arrays["Mixed_6d.branch1x1.bn.running_mean"] == 0).all()


def test_other_names_in_the_same_order_are_taken_and_told(capsys):
  given = state_dict()
  numbers = {name: f"net.{i}.op" for i, (name, _, _) in enumerate(inception_units.units())}
  other = {}
  for name, array in given.items():
    owner = next((unit for unit in numbers if name.startswith(f"{unit}.")), None)
    other[f"{numbers[owner]}{name.removeprefix(owner)}" if owner else f"net.{name}"] = array
  found = published.by_our_names(other)
  assert "taken in their order" in capsys.readouterr().err
  assert found.keys() == given.keys()
  for name, array in given.items():
    assert found[name].flat[0] == array.flat[0], name
  first, *rest = other
  with pytest.raises(Refused, match="not net"):
    published.by_our_names({name: other[name] for name in (*rest, first)})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"layers.mixed_11.conv.weight": 1}, "not layers.mixed_11.conv.weight"),
    ({"layers.conv.strange": 1}, "batch norm in Conv2d_1a_3x3, not strange"),
    ({"layers.conv.weight": None}, "a convolution's weights in Conv2d_1a_3x3"),
    ({"layers.conv.beta": None}, "a bias in Conv2d_1a_3x3"),
    ({"layers.conv.weight": np.zeros((10**9, 0, 3, 3))}, "a convolution's weights in Conv2d_1a_3x3"),
  ],
)
def test_other_names_are_refused(change, message):
  given = as_graph(state_dict(), GRAPH)
  for name, value in change.items():
    given = {key: array for key, array in given.items() if key != name}
    given |= {} if value is None else {name: np.zeros(32) if isinstance(value, int) else value}
  with pytest.raises(Refused, match=message):
    published.by_our_names(given)


def module(cls, **state):
  return Built(Name(f"__torch__.{cls}.___torch_mangle_7", "Module"), state)


def script(storages=(), code=b"def forward(self):\n  raise\n" * 99, **state):
  """A file as torch.jit.save writes it: modules as objects of classes in compressed code."""
  root = module("inception", training=False, **state)
  data = writers.torch_zip(root, list(storages))
  buffer = io.BytesIO(data)
  with zipfile.ZipFile(buffer, "a") as archive:
    archive.writestr("archive/code/__torch__.py", code, zipfile.ZIP_DEFLATED)
    archive.writestr("archive/constants.pkl", writers.dumps(()))
  return buffer.getvalue()


def bounded(data):
  return Bounded(io.BytesIO(data))


def test_modules_are_read_and_their_code_is_not():
  kernel = writers.Stored("0", np.arange(24, dtype=np.float32))
  mean = writers.Stored("1", np.array([0.5, 2], np.float16))
  conv = module(
    "conv", weight=writers.tensor(kernel, (2, 3, 2, 2)), mean=writers.tensor(mean, (2,)), bias=None
  )
  sizes = Call(Name("torch.jit._pickle", "build_intlist"), [299, 299])
  found = read_torchscript(
    bounded(script([kernel, mean], layers=module("seq", conv=conv, again=conv), s=sizes))
  )
  assert list(found) == ["layers.conv.weight", "layers.conv.mean"]
  np.testing.assert_array_equal(found["layers.conv.weight"].ravel(), np.arange(24))
  np.testing.assert_array_equal(found["layers.conv.mean"], [0.5, 2])


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ({"x": Call(Name("os", "system"), "touch /tmp/x")}, "only arrays and networks, not os.system"),
    ({"x": Call(Name("torch.jit._pickle", "build_tensor_from_id"), 1)}, "not torch.jit._pickle.build_tensor"),
  ],
)
def test_what_modules_do_not_need_is_refused(state, message):
  with pytest.raises(Refused, match=message):
    read_torchscript(bounded(script(**state)))


def test_modules_too_deep_and_in_a_circle():
  deep = module("leaf")
  for _ in range(60):
    deep = module("node", inner=deep)
  with pytest.raises(Refused, match="50 deep"):
    read_torchscript(bounded(script(inner=deep)))
  many = module("leaf")
  for _ in range(40):  # 2^40 paths, 40 modules
    many = module("node", a=many, b=many)
  assert read_torchscript(bounded(script(inner=many))) == {}
  stored = writers.Stored("0", np.zeros(1, np.float32))
  state = {f"t{i}": writers.tensor(stored, (1,)) for i in range(40)}
  crowd = {f"m{i}": Built(Name("__torch__.a", "B"), state) for i in range(40)}  # 1,600 tensors, listed 40
  assert len(read_torchscript(bounded(script([stored], **crowd)))) == 40


def write(path, arrays, how="zip"):
  content, storages = writers.state_dict({name: np.ascontiguousarray(a) for name, a in arrays.items()})
  path.write_bytes(writers.torch_zip(content, storages))
  return path


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "input = "),
    (b"not a file of torch" * 9, "input = "),
    ("small", "Conv2d_1a_3x3.bn.bias = missing"),
    ("other", "by torch-fidelity's names or TensorFlow's, not layer.weight"),
    ("script", "by torch-fidelity's names or TensorFlow's, not strange"),
  ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, content, message):
  path = tmp_path / "weights.pth"
  if content == "small":
    write(path, {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3), np.float32)})
  elif content == "other":
    write(path, {"layer.weight": np.zeros((3, 3), np.float32)})
  elif content == "script":
    stored = writers.Stored("0", np.zeros(3, np.float32))
    path.write_bytes(script([stored], strange=writers.tensor(stored, (3,))))
  else:
    path.write_bytes(content)
  out = tmp_path / "out.safetensors"
  with pytest.raises(UserError, match=message):
    published.convert_inception(path, out)
  assert not out.exists()


def test_damaged_files_are_one_line(tmp_path):
  """Bytes changed, cut out and cut off: our own error, whichever reader they meet first."""
  stored = [writers.Stored(str(i), np.ones((32, 3, 3, 3), np.float32)) for i in range(2)]
  parts = {f"t{storage.key}": writers.tensor(storage, (32, 3, 3, 3)) for storage in stored}
  genuine = script(stored, layers=module("seq", conv=module("conv", **parts)))
  random, path = np.random.default_rng(0), tmp_path / "weights.pt"
  for case in range(150):
    data = bytearray(genuine)
    # most of a file is numbers: what says what they are is at its start and end
    places = [int(place) % len(data) for place in random.normal(scale=700, size=1 + case % 4)]
    if case % 5 == 0:
      del data[places[0] : places[0] + 40]
    elif case % 5 == 1:
      del data[places[0] :]
    else:
      for place in places:
        data[place] = int(random.integers(256))
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
      published.read(path)
    assert "\n" not in str(caught.value)


def test_pins_are_whole_and_go_with_the_names():
  for file in published.PUBLISHED.values():
    assert len(file.sha256) == 64 and all(url.startswith("https://") for url in file.urls)
  named = published.PUBLISHED["torch-fidelity"]
  assert all(url.endswith(f"-{named.sha256[:8]}.pth") for url in named.urls)


def test_the_command_says_what_is_missing(tmp_path, capsys):
  assert cli.run(["convert", "--from=inception", "--input=none.pth"]) == 2
  assert "--out" in capsys.readouterr().err
  out = tmp_path / "i.safetensors"
  assert cli.run(["convert", "--from=inception", "--input=none.pth", f"--out={out}"]) == 2
  said = capsys.readouterr().err
  assert "--input = none.pth" in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_torchscript_that_torch_traced(tmp_path):
  """By the graph's names, from random weights: what is read is what torch holds."""
  torch = needs.torch()
  root = torch.nn.Module()
  forward = torch.nn.Identity()

  def child(module, path, new):
    *branches, leaf = path.split(".")
    for name in branches:
      if not hasattr(module, name):
        module.add_module(name, torch.nn.Module())
      module = getattr(module, name)
    module.add_module(leaf, new)

  for path, channels, unit in (
    (path, channels, unit)
    for (path, ours), (name, channels, unit) in itertools.product(
      published.graph_names().items(), inception_units.units()
    )
    if ours == name
  ):
    layer = torch.nn.Module()
    layer.conv = torch.nn.Conv2d(channels, unit.features, unit.window, bias=False)
    layer.bn = torch.nn.BatchNorm2d(unit.features, eps=1e-3)
    torch.nn.init.normal_(layer.bn.running_mean)
    child(root, f"layers.{path}", layer)
  root.output = torch.nn.Linear(2048, 1008)

  class Whole(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.layers, self.output, self.through = root.layers, root.output, forward

    def forward(self, x):
      return self.through(x)

  whole = Whole().eval()
  for name, traced in (
    ("traced", torch.jit.trace(whole, torch.zeros(1))),
    ("scripted", torch.jit.script(whole)),
  ):
    path = tmp_path / f"{name}.pt"
    torch.jit.save(traced, str(path))
    out = tmp_path / f"{name}.safetensors"
    about = published.convert_inception(path, out)
    assert about["published_by"] == "unknown" and len(about["source_sha256"]) == 64
    arrays = safetensors.numpy.load_file(out)
    path.unlink()
    theirs = {key: value.numpy() for key, value in whole.state_dict().items()}
    expected = published.stored_layout(published.by_our_names(theirs))
    assert arrays.keys() == expected.keys() == inception.shapes().keys()
    for key, array in expected.items():
      np.testing.assert_array_equal(arrays[key], array)
    kernel = theirs["layers.mixed_6.tower_1.conv_3.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(arrays["Mixed_6d.branch7x7dbl_4.conv.weight"], kernel)
