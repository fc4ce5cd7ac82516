"""Which names in a folder or an archive are images: what is none is counted, never passed over in silence."""

import collections
import contextlib
import zipfile
from collections.abc import Iterable

# What is decoded; that of a file's content decides how, not its name.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
DESCRIPTION = "dataset.json"  # EDM's labels
# What operating systems leave behind: nobody's images.
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")
_UTF8_NAME = 0x800  # the flag of a zip's entry


def is_litter(name: str) -> bool:
  """Whether a path is hidden, or left behind by an operating system, in one of its parts.

  >>> [is_litter(name) for name in ("a/b.png", "a/.DS_Store", "__MACOSX/a/._b.png", "a/Thumbs.db")]
  [False, True, True, True]
  """
  parts = [part for part in name.split("/") if part not in ("", ".")]
  return any(part.startswith(".") or part.lower() in _LITTER for part in parts)


def is_image(name: str) -> bool:
  """Whether a name is that of an image that can be read."""
  return name.lower().endswith(EXTENSIONS)


def left_out(names: Iterable[str]) -> list[str]:
  """Return a line that counts what are neither images, labels nor litter by their extensions; none if none.

  >>> left_out(["a.png", "b.HEIC", "c.heic", "notes", "dataset.json", ".DS_Store"])
  ['3 files left out, not of a kind that is read: 2 .heic, 1 without an extension']
  """
  counts: collections.Counter[str] = collections.Counter()
  for name in names:
    last = name.rsplit("/", 1)[-1]
    if not is_image(name) and not is_litter(name) and last != DESCRIPTION:
      _, dot, extension = last.rpartition(".")
      counts[f".{extension.lower()}" if dot else "without an extension"] += 1
  if not counts:
    return []
  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  total, listed = counts.total(), ", ".join(f"{count} {kind}" for kind, count in ordered)
  return [f"{total} file{'s' * (total > 1)} left out, not of a kind that is read: {listed}"]


def meant(entry: zipfile.ZipInfo) -> str:
  """Return the name that a zip's entry is meant to have.

  Some programs on Windows write backslashes; many elsewhere write UTF-8 and do not say so.

  >>> meant(zipfile.ZipInfo("a\\\\b.png"))
  'a/b.png'
  """
  name = entry.filename
  if not entry.flag_bits & _UTF8_NAME:
    with contextlib.suppress(UnicodeError):
      name = name.encode("cp437").decode("utf-8")
  return name.replace("\\", "/").removeprefix("./")


def common_folder(names: Iterable[str]) -> str:
  """Return the deepest folder that all of some names lie in, with its slash; "" for none.

  >>> common_folder(["photos/cat/1.png", "photos/ship/2.png"]), common_folder(["a.png", "b/c.png"])
  ('photos/', '')
  """
  folders = [name.split("/")[:-1] for name in names]
  shared: list[str] = []
  for parts in zip(*folders, strict=False):
    if len(set(parts)) > 1:
      break
    shared.append(parts[0])
  return "".join(f"{part}/" for part in shared)
