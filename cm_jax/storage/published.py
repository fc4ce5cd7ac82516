"""Weights that are not a folder of one's own: a name of those that come with cm_jax, the address of a zip,
a repository of the Hugging Face Hub.

  digits-cd                               weights that come with cm_jax
  https://host/cd.zip#sha256=0123...      a zip of a weights folder, pinned as pip pins
  hf:owner/name@revision                  model.json and weights.safetensors of a repository

What is fetched lies in the cache of `storage/downloads.py` and is fetched once.
"""

import functools
import re
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from cm_jax.errors import UserError, one_of
from cm_jax.storage import downloads, whole
from cm_jax.storage.model_json import MODEL, WEIGHTS
from cm_jax.storage.weights import is_weights_folder

SHARE = Path("share", "cm_jax", "configs")  # below an installation's data
WEB = ("https://", "http://")
SCHEMES = (*WEB, "hf:")
LARGEST = 16 << 30  # bytes of a zip
PRESSED = 100  # times its own bytes that a zip's entries may come to: weights are noise, which is not pressed
# what a bad zip raises
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)
_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_PIN = re.compile(r"(https://[^#]*)#sha256=([0-9a-f]{64})")


def config_folders() -> list[Path]:
  """Return where configs/ of cm_jax may lie: beside the package in a checkout; below the environment, or the
  user's own packages; below the folder of `pip install --target`."""
  package = Path(__file__).parents[1]
  schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
  shares = [Path(sysconfig.get_path("data", scheme), SHARE) for scheme in schemes]
  return [package.parent / "configs", *shares, package.parent / SHARE]


def shipped() -> dict[str, Path]:
  """Return the weights folders that come with cm_jax, by name."""
  for configs in config_folders():
    if (configs / "digits_edm.py").is_file():
      folders = sorted((configs / "results" / "weights").glob("*"))
      return {folder.name: folder for folder in folders if is_weights_folder(folder)}
  return {}


def is_own(given: epath.PathLike) -> bool:
  """Say whether a path is one, of a file system, and not what this module finds.

  >>> is_own("runs/cd"), is_own("hf:owner/name"), is_own("digits-nothing")
  (True, False, False)
  """
  text = str(given)
  if text.startswith(SCHEMES):
    return False
  return "/" in text or text.startswith(("~", ".")) or whole.place(text).exists()


def is_weights(given: epath.PathLike) -> bool:
  """Say whether a path or a name is of a weights folder, which has no steps, without fetching anything.

  >>> is_weights("hf:owner/name"), is_weights("teacher"), is_weights("")
  (True, False, False)
  """
  text = str(given)
  return bool(text) and (text.startswith(SCHEMES) or is_weights_folder(given) or text in shipped())


def pinned(given: epath.PathLike) -> epath.PathLike:
  """Return what names the same weights tomorrow: a Hub's repository with the commit that it is at, anything
  else as it is. What a person did not say is told on standard error.

  Raises:
    UserError: An address without the sha256 of its content, which the error says; no such repository.
  """
  text = str(given)
  if text.startswith(WEB):
    _address(text, None)
  if not text.startswith("hf:"):
    return given
  name, revision = _repository(text)
  commit = revision if re.fullmatch("[0-9a-f]{40}", revision or "") else _commit(text, name, revision)
  exact = f"hf:{name}@{commit}"
  if exact != text:
    print(f"cm_jax: {text} is {exact}", file=sys.stderr, flush=True)
  return exact


def folder_of(given: epath.PathLike, opener: Callable[..., Any] | None = None) -> epath.PathLike:
  """Return the folder of weights that a name, an address or a repository stands for; a path as it is.

  Args:
    given: What --model, --teacher and --init take.
    opener: As `downloads.download` has it.

  Raises:
    UserError: A name that is not known (all that are known are said), an address without its pin, nothing to
      fetch there, a zip or a repository without weights.
  """
  text = str(given)
  if is_own(given):
    return given
  if text.startswith("hf:"):
    return _from_hub(str(pinned(text)))
  if text.startswith(WEB):
    return _unpacked(text, opener)
  known = shipped()
  if text not in known:
    listed = f"; by name, {one_of(known, text)}" if known else ""
    expected = f"a run folder (config.json, checkpoints/) or a weights folder ({MODEL}, {WEIGHTS})"
    if Path(text).suffix:
      listed += ": `convert` makes a weights folder of a published checkpoint"
    raise UserError("model", text, expected + listed)
  return str(known[text])


def _address(text: str, opener: Callable[..., Any] | None) -> tuple[str, str]:
  """Return an address and the sha256 it is pinned to."""
  if not text.startswith("https://"):
    raise UserError("model", text, "an https address")
  match = _PIN.fullmatch(text)
  if match is None:
    if "#" in text:
      raise UserError("model", text, "#sha256= and 64 hexadecimal digits behind the address, or nothing")
    now = downloads.sha256_of(text, opener=opener, max_bytes=LARGEST)
    expected = f"{text}#sha256={now} (what is there now), if it comes from whom you trust"
    raise UserError("model", text, expected)
  return match[1], match[2]


def _unpacked(text: str, opener: Callable[..., Any] | None) -> str:
  address, sha256 = _address(text, opener)
  archive = downloads.download(address, sha256, opener=opener, max_bytes=LARGEST)
  folder = archive.with_name(f"weights-{sha256}")
  with downloads.locked(folder):
    if not is_weights_folder(folder):
      _unpack(archive, folder, text)
  return str(folder)


def _unpack(archive: Path, folder: Path, text: str) -> None:
  try:
    with zipfile.ZipFile(archive) as file:
      entries = {name: _entry(file, name) for name in (WEIGHTS, MODEL)}
      limit = max(PRESSED * archive.stat().st_size, 1 << 20)
      if sum(entry.file_size for entry in entries.values()) > limit:
        raise ValueError(f"what is in it comes to more than {PRESSED} times its bytes")
      with whole.folder(folder, last=MODEL) as new:
        for name, entry in entries.items():
          _extract(file, entry, new / name)
  except BROKEN as error:
    raise UserError("model", text, f"a zip of a weights folder, {MODEL} and {WEIGHTS} ({error})") from None


def _entry(file: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
  """Return the one entry of a name, at the top of a zip or in one folder, as `zip -r cd.zip cd` makes it.

  Raises:
    ValueError: There is none, or there are several.
  """
  pattern = re.compile(rf"(?!__MACOSX/)(?:[^/]+/)?{re.escape(name)}")
  found = [entry for entry in file.infolist() if pattern.fullmatch(entry.filename)]
  if len(found) != 1:
    raise ValueError(f"{len(found)} of {name}")
  return found[0]


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, to: Path) -> None:
  """Write an entry, no more of it than it says it has."""
  left = entry.file_size
  with file.open(entry) as source, open(to, "wb") as target:
    while chunk := source.read(min(1 << 20, left + 1)):
      left -= len(chunk)
      if left < 0:
        raise ValueError(f"{entry.filename} is longer than it says")
      target.write(chunk)


def _repository(text: str) -> tuple[str, str | None]:
  match = _HUB.fullmatch(text)
  if match is None or ".." in text:
    raise UserError("model", text, "hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
  return match[1], match[2]


def _hub(text: str) -> Any:
  try:
    import huggingface_hub
  except ImportError:
    expected = "huggingface_hub to be installed, which fetches it: pip install 'cm_jax[hf]'"
    raise UserError("model", text, expected) from None
  return huggingface_hub


def _commit(text: str, name: str, revision: str | None) -> str:
  """Return the commit that a branch or tag of a repository is at, its main branch if none is named."""
  commit = _asked(text, lambda hub: hub.HfApi().model_info(name, revision=revision, timeout=60).sha)
  if not re.fullmatch("[0-9a-f]{40}", commit or ""):
    raise UserError("model", text, f"a repository with a commit, not {commit!r}")
  return str(commit)


def _from_hub(exact: str) -> str:
  name, _, commit = exact.removeprefix("hf:").partition("@")
  folder = downloads.cache_folder() / f"hub-{name.replace('/', '--')}-{commit}"
  with downloads.locked(folder):
    if not is_weights_folder(folder):
      with whole.folder(folder, last=MODEL) as new:
        for file in (MODEL, WEIGHTS):
          ask = functools.partial(_download, name=name, file=file, commit=commit, to=new.parent / "hub")
          Path(_asked(exact, ask)).resolve().rename(new / file)
  return str(folder)


def _download(hub: Any, name: str, file: str, commit: str, to: Path) -> str:
  return str(hub.hf_hub_download(name, file, revision=commit, cache_dir=to))


def _asked(text: str, ask: Callable[[Any], Any]) -> Any:
  """Return what the Hub answers.

  Raises:
    UserError: It does not: no such repository, revision or file, no way there.
  """
  hub = _hub(text)
  try:
    return ask(hub)
  except Exception as error:  # of its HTTP library, which its versions change
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise UserError("model", text, f"a repository with {MODEL} and {WEIGHTS} ({said})") from None
