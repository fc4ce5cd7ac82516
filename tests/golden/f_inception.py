"""Inception-2015 as torch-fidelity has it: taps, logits, TensorFlow 1's resize; weights drawn by a rule."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from cm_jax.convert.inception import stored_layout
from cm_jax.networks import inception
from tests.golden.options import UnknownOption
from tests.golden.runner import Case, Handler, Result

Draw = Callable[[np.ndarray], np.ndarray]
# names that torch-fidelity gives its taps, and the fields of `Outputs`
TAPS = {
  "64": "tap64", "192": "tap192", "768": "tap768", "2048": "pool",
  "logits_unbiased": "logits_unbiased", "logits": "logits",
}  # fmt: skip
BATCH = 4


def run(case: Case) -> Iterator[Result]:
  check_text(case)
  shapes = {name: tuple(shape) for name, shape in case.meta["state_dict_shapes"].items()}
  drawn = weights(shapes, case)
  outputs = case.outputs()
  for name in outputs:
    if name.startswith("weightcheck_"):
      values = drawn[name.removeprefix("weightcheck_")].ravel()
      yield Result(name, values[: case.arrays[outputs[name]].size], exact=True)
  arrays = stored_layout(drawn)
  inception.check(arrays, case.name)
  params = inception.folded(arrays)
  for key in (key for key in case.arrays if key.startswith("in_img_")):
    images = case.arrays[key].transpose(0, 2, 3, 1)
    name = key.removeprefix("in_img_")
    resized = np.asarray(RESIZED(images))
    found = network(params, resized)
    for tap, field in TAPS.items():
      if f"{name}_{tap}" in outputs:
        yield Result(f"{name}_{tap}", found[field])
    if f"{name}_resized_rows" in outputs:
      which, rows = rows_of(case)
      yield Result(f"{name}_resized_rows", resized[which : which + 1, rows].transpose(0, 3, 1, 2))
    wide = resized.astype(np.float64)
    for what, value in (("mean", wide.mean()), ("sumsq", np.square(wide).sum())):
      if f"{name}_resized_{what}" in outputs:
        yield Result(f"{name}_resized_{what}", value)


RESIZED = jax.jit(inception.resized)
NETWORK = jax.jit(lambda params, x: inception.inception(params, (x - 128) / 128)._asdict())


def network(params: Mapping[str, object], resized: np.ndarray) -> dict[str, np.ndarray]:
  """Evaluate any number of images, so many at a time: one program for all."""
  parts = []
  for start in range(0, len(resized), BATCH):
    part = resized[start : start + BATCH]
    padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
    parts.append({name: np.asarray(out)[: len(part)] for name, out in NETWORK(params, padded).items()})
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_text(case: Case) -> None:
  """Refuse what the words of meta.json say otherwise than the network has it."""
  wanted = (
    ("layout", r"NCHW", "NCHW"),
    ("call", r"BN eps ?= ?([\d.e-]+\d)", inception.EPS),
    ("call", r"to (\d+)x\d+", inception.SIZE),
    ("call", r"no half-pixel offset", "no half-pixel offset"),
  )
  for key, pattern, value in wanted:
    found = re.search(pattern, case.meta[key])
    said = None if found is None else found[found.lastindex or 0]
    if said is None or (float(said) != value if not isinstance(value, str) else said != value):
      raise UnknownOption(f"{key}: {said} where {value} is known")


def rows_of(case: Case) -> tuple[int, list[int]]:
  """Return the image and the rows of it that were kept of the resize."""
  found = re.search(r"rows \[([\d, ]+)\] of image (\d+)", case.meta["call"])
  if not found:
    raise UnknownOption("call: the rows of resized_rows are not said in words known here")
  return int(found[2]), [int(row) for row in found[1].split(",")]


def weights(shapes: Mapping[str, tuple[int, ...]], case: Case) -> dict[str, np.ndarray]:
  """Draw every array of a state dict by the rule that meta.json states."""
  rules = parsed(case.meta["weights_rule"])
  found = {}
  for name, shape in shapes.items():
    rule = next((draw for suffix, draw in rules if name.endswith(suffix)), None)
    if rule is None:
      raise UnknownOption(f"weights_rule: nothing for {name}")
    random = np.random.default_rng([case.meta["SEED"], zlib.crc32(name.encode())])
    found[name] = np.asarray(rule(random.standard_normal(shape))).astype(np.float32)
  return found


def parsed(rule: str) -> list[tuple[str, Draw]]:
  """Return (end of a name, z -> array) of a rule such as "'*.bn.weight': 1+0.1*z; 'fc.bias': 0.1*z."

  >>> [(end, draw(np.array(-2.0)).item()) for end, draw in parsed("'*.var': 1+0.2*|z|; 'fc.b': 0.1*z. Then")]
  [('.var', 1.4), ('fc.b', -0.2)]
  """
  found = re.findall(r"'\*?([\w.]+)'(?: \([\d,]*\))?: (.+?)(?=; '|\. |\.?$)", rule)
  return [(end, _expression(text)) for end, text in found]


def _expression(text: str) -> Draw:
  form = re.fullmatch(
    r"(?:(?P<offset>[\d.]+)\+)?(?:(?P<gain>[\d.]+)\*)?(?P<z>z|\|z\|)"
    r"(?:\*sqrt\((?P<power>[\d.]+)/\(I\*kh\*kw\)\)|/sqrt\((?P<width>\d+)\))?",
    text,
  )
  if text == "0":
    return np.zeros_like
  if not form:
    raise UnknownOption(f"weights_rule: {text!r} is not known here")
  number = lambda group, default: float(form[group] or default)

  def draw(z: np.ndarray) -> np.ndarray:
    z = abs(z) if form["z"] == "|z|" else z
    scale = np.sqrt(number("power", 1) / np.prod(z.shape[1:])) if form["power"] else 1
    scale = scale / np.sqrt(number("width", 1)) if form["width"] else scale
    return number("offset", 0) + number("gain", 1) * z * scale

  return draw


def accepts(case: Case) -> bool:
  return case.meta.get("cls") == "FeatureExtractorInceptionV3"


READS = ("weights_rule", "SEED", "state_dict_shapes", "weightcheck")
HANDLERS = [Handler(accepts, run, "inception", READS)]
