"""Foreign checkpoints into weights folders: the readers build arrays only and run nothing; no torch."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from etils import epath

from cm_jax.convert import ect, edm, jcm, openai, own
from cm_jax.convert.failures import reading
from cm_jax.convert.foreign import AS_IT_IS, Choices, Foreign, build_model
from cm_jax.convert.readers.pickles import Refused
from cm_jax.convert.readers.torch_files import is_legacy
from cm_jax.errors import UserError, one_of
from cm_jax.storage import digests, weights, whole

FORMATS: Mapping[str, Callable[[Path, Choices], Foreign]] = {
  "edm": edm.read,
  "ect": ect.read,
  "openai": openai.read,
  "jcm": jcm.read,
  "cm_jax": own.read,
}
_PICKLES = ("edm", "ect")


@dataclasses.dataclass(frozen=True)
class Converted:
  """What a conversion did."""

  folder: epath.Path
  format: str
  checkpoint: Foreign
  num_params: int


def detect(path: str | os.PathLike) -> str:
  """Say which of `FORMATS` a file or folder is, from its first bytes.

  Raises:
    UserError: None of them, empty, or not there.
  """
  if whole.place(path).is_dir():
    return "cm_jax"
  path = Path(path)
  try:
    whole.check_regular(path)
    with open(path, "rb") as file:
      head = file.read(1 << 20)
  except OSError as error:
    raise UserError("input", str(path), f"a file that can be read ({error.strerror or error})") from None
  if head.startswith(b"PK\x03\x04") or is_legacy(head):
    return "openai"
  if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
    # the class of the stored network, as a pickled string of 10 characters
    return "ect" if b"\x8c\x0aECMPrecond" in head else "edm"
  if 0x81 <= (head or b"\0")[0] <= 0x8F or head[:1] in (b"\xde", b"\xdf"):  # a msgpack map
    return "jcm"
  what = "an empty file" if not head else "unknown content"
  raise UserError("input", str(path), f"a checkpoint of one of the formats {', '.join(FORMATS)}, not {what}")


def read(
  path: str | os.PathLike, from_: str | None = None, choices: Choices = AS_IT_IS
) -> tuple[str, Foreign]:
  """Read a checkpoint without running anything it holds.

  Args:
    path: A file, or one of our folders.
    from_: A key of `FORMATS`; None finds out.
    choices: What no file says.

  Returns:
    The format and the checkpoint.

  Raises:
    UserError: It is refused; one line says why.
  """
  found = detect(path)
  if from_ is not None and from_ not in FORMATS:
    raise UserError("from", from_, one_of(FORMATS, from_))
  name = from_ or found
  if name != found and not (name in _PICKLES and found in _PICKLES):
    raise UserError("from", name, f"{found}, which is what {path} looks like")
  reader = FORMATS[name]
  with reading(path, f"{name} checkpoint"):
    return name, choices.apply(reader(Path(path) if whole.is_local(path) else whole.place(path), choices))


def convert(
  path: str | os.PathLike,
  out: epath.PathLike,
  from_: str | None = None,
  choices: Choices = AS_IT_IS,
  allow_nonfinite: bool = False,
) -> Converted:
  """Write the weights folder of a checkpoint: every array used once, every parameter filled, or nothing.

  Args:
    path, from_, choices: As for `read`.
    out: A folder as for `weights.save_weights`.
    allow_nonfinite: Go on where a weight is NaN or infinite.

  Raises:
    UserError: The checkpoint is refused, nothing says its kind, or `out` cannot be written; nothing is left
      behind.
  """
  weights.check_target(out)
  name, foreign = read(path, from_, choices)
  try:
    model = build_model(foreign, allow_nonfinite)
  except Refused as refused:
    raise UserError("input", str(path), str(refused)) from None
  source = whole.place(path)
  if source.is_dir():
    source = source / weights.WEIGHTS
  origin = {
    "source": whole.place(path).name,
    "source_sha256": digests.of_file(source) if source.is_file() else "",
    "peer": foreign.peer,
    "licence": foreign.licence,
  }
  folder = weights.save_weights(out, model.params, {**weights.info_of(model), **origin})
  return Converted(folder, name, foreign, sum(array.size for array in weights.flatten(model.params).values()))
