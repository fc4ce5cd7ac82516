"""Inception-2015's published weights into one file of ours; see `networks.inception`.

torch-fidelity and pytorch-fid publish one state dict, NVIDIA a TorchScript whose modules are called as
TensorFlow's graph calls them. The hashes are those that public repositories pin these files by; they were
not fetched here.
"""

import itertools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cm_jax.convert.failures import reading
from cm_jax.convert.foreign import check_size
from cm_jax.convert.openai import read_state_dict
from cm_jax.convert.readers.pickles import Bounded, Refused
from cm_jax.convert.readers.torchscript import is_torchscript, read_torchscript
from cm_jax.networks import inception, inception_units
from cm_jax.notices import notice
from cm_jax.storage import downloads, weights

LICENCE = "Apache-2.0 (TensorFlow's inception-2015-12-05)"


class Published(NamedTuple):
  """A file that its authors publish."""

  urls: tuple[str, ...]
  sha256: str


_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
PUBLISHED = {
  "torch-fidelity": Published(
    (
      f"{_FIDELITY}weights-inception-2015-12-05-6726825d.pth",
      f"{_PYTORCH_FID}pt_inception-2015-12-05-6726825d.pth",
    ),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
  ),
  "nvidia": Published(
    (f"{_NVIDIA}inception-2015-12-05.pt",),
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
  ),
}
_COUNTER = ".num_batches_tracked"  # of batch norms while training
# what a batch norm's numbers are called, by what we call them
_KINDS = {
  "running_mean": ("running_mean", "moving_mean", "mean"),
  "running_var": ("running_var", "moving_variance", "var", "variance"),
  "bias": ("bias", "beta"),
  "weight": ("weight", "gamma", "scale"),
}


def fetch(which: str = "torch-fidelity") -> Path:
  """Download a file of `PUBLISHED` (95 MB), once.

  Raises:
    UserError: It could not be fetched; says where to put the file by hand, and its hash.
  """
  return downloads.download(PUBLISHED[which].urls, PUBLISHED[which].sha256)


def convert_inception(path: str | Path, out: str | Path) -> dict[str, str]:
  """Write `out`, a safetensors file, from a published file.

  Returns:
    What the file says of itself: its source, the sha256 of that, whose publication that is, the licence.

  Raises:
    UserError: A file that is not what it should be; nothing is written.
  """
  arrays, digest = read(path), downloads.file_sha256(path)
  whose = [name for name, published in PUBLISHED.items() if published.sha256 == digest]
  about = {
    "source": Path(path).name,
    "source_sha256": digest,
    "published_by": whose[0] if whose else "unknown",
    "licence": LICENCE,
  }
  weights.save_arrays(out, arrays, about)
  return about


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Return the arrays of a published file, or of one like it, in our layout and checked.

  Raises:
    UserError: The file cannot be read, is refused, or is of another network.
  """
  with reading(path, "file of Inception's weights"):
    named = by_our_names(_arrays(Path(path)))
  arrays = stored_layout(named)
  inception.check(arrays, str(path))
  return arrays


def _arrays(path: Path) -> dict[str, np.ndarray]:
  with open(path, "rb") as file:
    bounded = Bounded(file)
    is_zip = bounded.read(4) == b"PK\x03\x04"
    bounded.seek(0)
    if is_zip:
      with zipfile.ZipFile(path) as archive:
        is_script = is_torchscript(archive.namelist())
      if is_script:
        arrays = read_torchscript(bounded)
        check_size(arrays, bounded.size)
        return arrays
  return read_state_dict(path)


def by_our_names(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return a published set of arrays by torch-fidelity's names, in PyTorch's layout.

  A batch norm without a gain has gain 1; a convolution with a bias and without a batch norm had it folded.

  Args:
    theirs: By torch-fidelity's names, or by those of TensorFlow's graph with dots (what is in
      "layers.mixed_3.tower.conv_1"), behind any prefix; by other names if every convolution in turn has the
      shape that is due, which is said.

  Raises:
    Refused: It is none of them.
  """
  first = re.compile(r"(.*?)Conv2d_1a_3x3\.conv\.weight")
  found = [match for name in theirs if (match := first.fullmatch(name))]
  if found:
    prefix = found[0][1]
    return {name.removeprefix(prefix): array for name, array in theirs.items()}
  given = {name: array for name, array in theirs.items() if not name.endswith(_COUNTER)}
  groups, last = _by_graph(given)
  if unknown := [
    name for name in given if name not in last and not any(name in group for group in groups.values())
  ]:
    ordered = _by_order(given, [name for name in given if name not in last])
    if ordered is None:
      raise Refused(f"Inception's arrays by torch-fidelity's names or TensorFlow's, not {unknown[0][:100]}")
    groups = ordered
    notice("Inception's arrays have other names: taken in their order, every shape is the one that is due")
  arrays = {last[name]: given[name] for name in last}
  for unit, names in groups.items():
    parts = {_kind(name, given[name]): given[name] for name in names}
    arrays |= {f"{unit}.{kind}": array for kind, array in _unit(unit, parts).items()}
  return arrays


def _by_graph(theirs: Mapping[str, np.ndarray]) -> tuple[dict[str, set[str]], dict[str, str]]:
  """Return the names of each of our units' arrays, and our names of the last layer's."""
  ours, groups, last = graph_names(), dict[str, set[str]](), dict[str, str]()
  for name in theirs:
    unit = _owner(name.rpartition("layers.")[2] if "layers." in name else name, ours)
    if unit is not None:
      groups.setdefault(ours[unit], set()).add(name)
    elif match := re.fullmatch(r"(?:.*\.)?(?:output|softmax|fc)\.(weight|bias)", name):
      last[name] = f"fc.{match[1]}"
  return groups, last


def _by_order(theirs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, set[str]] | None:
  """Return the names of each unit's arrays where the convolutions come in our order; None where not."""
  units = list(inception_units.units())
  kernels = [name for name in names if theirs[name].ndim == 4]
  due = [(unit.features, channels, *unit.window) for _, channels, unit in units]
  if [theirs[name].shape for name in kernels] != due:
    return None
  groups = {name: {kernel} for (name, _, _), kernel in zip(units, kernels, strict=True)}
  of_kernel = dict(zip(kernels, groups, strict=True))
  for name in names:
    if theirs[name].ndim != 4:
      shared = lambda kernel, name=name: _shared(kernel.split("."), name.split("."))
      groups[of_kernel[max(kernels, key=shared)]].add(name)
  return groups if len({len(group) for group in groups.values()}) == 1 else None  # each has as many


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
  """Return how many first parts two names have in common."""
  return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _kind(name: str, array: np.ndarray) -> str:
  return "kernel" if array.ndim == 4 else name.rpartition(".")[2]


def _owner(path: str, units: Mapping[str, str]) -> str | None:
  parts = path.split(".")
  heads = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
  return next((head for head in heads if head in units), None)


def _unit(name: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  if "kernel" not in given or not given["kernel"].size:
    raise Refused(f"a convolution's weights in {name}")
  features = len(given["kernel"])
  found = {"conv.weight": given["kernel"]}
  usual = {
    "running_mean": np.zeros(features),
    "running_var": np.full(features, 1 - inception.EPS),
    "weight": np.ones(features),
  }
  left = given.keys() - {"kernel"}
  for kind, names in _KINDS.items():
    have = [key for key in names if key in left]
    left = left - set(have)
    if not have and kind not in usual:
      raise Refused(f"a bias in {name}")
    found[f"bn.{kind}"] = given[have[0]] if have else usual[kind]
  if left:
    raise Refused(f"a convolution and a batch norm in {name}, not {sorted(left)[0][:100]}")
  return found


def graph_names() -> dict[str, str]:
  """Return our name of every unit by its name in TensorFlow's graph, with dots.

  >>> names = graph_names()
  >>> names["conv_1"], names["mixed_6.conv"], names["mixed_10.tower_1.mixed.conv_1"], len(names)
  ('Conv2d_2a_3x3', 'Mixed_6d.branch1x1', 'Mixed_7c.branch3x3dbl_3b', 94)
  """
  count = lambda kind, number: kind if number == 0 else f"{kind}_{number}"
  found = {
    count("conv", i): unit.name for i, unit in enumerate(itertools.chain.from_iterable(inception_units.STEM))
  }
  for number, block in enumerate(inception_units.BLOCKS):
    path = count("mixed", number)
    pooled = ((inception_units.pooled_unit(block),),) if block.pooled else ()
    towers = 0
    for chain in (*block.branches, *pooled):
      # a branch of one unit stands by itself, that behind the pooling does not
      is_alone = len(chain) == 1 and chain not in pooled
      tower = "" if is_alone else f"{count('tower', towers)}."
      towers += not is_alone
      for step, link in enumerate(chain):
        side_by_side = isinstance(link, tuple) and not isinstance(link, inception_units.Unit)
        names = (
          [f"mixed.{count('conv', i)}" for i in range(len(link))] if side_by_side else [count("conv", step)]
        )
        links = link if side_by_side else (link,)
        for name, unit in zip(names, links, strict=True):
          found[f"{path}.{tower}{name}"] = f"{block.name}.{unit.name}"
  return found


def stored_layout(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return torch-fidelity's state dict in our layout, float32, what only training needs left out.

  >>> stored_layout({"fc.weight": np.zeros((1008, 2048))})["fc.weight"].shape
  (2048, 1008)
  """
  turned = lambda array: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  return {
    name: np.ascontiguousarray(turned(np.asarray(array, np.float32)))
    for name, array in theirs.items()
    if not name.endswith(_COUNTER)
  }
