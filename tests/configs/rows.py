"""Every row of configs/: a file, and each variant that its argument chooses."""

import ast
import re
from pathlib import Path

import ml_collections

from cm_jax.cli.config_flags import read_file

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
# The images of a family of rows: their shape, and how many classes they have.
IMAGES = {
  "digits": ((8, 8, 1), 10), "folder": ((32, 32, 3), 0), "cifar10": ((32, 32, 3), 10),
  "cifar16": ((16, 16, 3), 10), "imagenet64": ((64, 64, 3), 1000), "imagenet512": ((64, 64, 4), 1000),
  "bedroom256": ((256, 256, 3), 0), "cat256": ((256, 256, 3), 0), "ffhq64": ((64, 64, 3), 0),
  "afhqv2": ((64, 64, 3), 0), "swiss": ((1, 1, 2), 0),
}  # fmt: skip


def variants_of(name: str) -> tuple[str, ...]:
  """Return the arguments that a file says it takes; ("",) where it takes none."""
  for node in ast.parse((CONFIGS / f"{name}.py").read_text()).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
      if isinstance(node.value, ast.Tuple):
        return ast.literal_eval(node.value)
      return variants_of(ast.unparse(node.value).partition(".")[0])  # those of the file it starts from
  return ("",)


# "NAME" for a file's default, "NAME:VARIANT" for its others
ROWS = [f"{name}:{variant}" if i else name for name in NAMES for i, variant in enumerate(variants_of(name))]
PAPERS = [row for row in ROWS if not row.startswith(("digits", "cifar16", "folder", "swiss"))]


def file_of(row: str) -> str:
  """Return what --config takes for a row.

  >>> file_of("cifar10_cd:l2")
  'configs/cifar10_cd.py:l2'
  """
  name, colon, variant = row.partition(":")
  return f"configs/{name}.py{colon}{variant}"


def config_of(row: str) -> ml_collections.ConfigDict:
  """Return the config of a row, read as the command line reads it."""
  return read_file(str(CONFIGS.parent / file_of(row)))


def images_of(row: str) -> tuple[tuple[int, int, int], int]:
  """Return the shape and the number of classes of a row's images."""
  shape, classes = IMAGES[re.split("[_:]", row)[0]]
  return shape, classes


def docstring(row: str) -> str:
  """Return what a row's file says of itself."""
  return (
    ast.get_docstring(ast.parse((CONFIGS / f"{row.partition(':')[0]}.py").read_text()), clean=False) or ""
  )


def commands(row: str) -> list[dict[str, str]]:
  """Return the flags of the training commands in a row's file that are of this very row."""
  joined = re.sub(r"\n +(?=--)", " ", docstring(row))
  lines = [line for line in joined.splitlines() if line.startswith("  python -m cm_jax train ")]
  name, _, variant = row.partition(":")
  own = {file_of(row)} if variant else {file_of(row), file_of(f"{name}:{variants_of(name)[0]}")}
  return [flags for flags in map(flags_of, lines) if flags.get("config") in own]


def flags_of(command: str) -> dict[str, str]:
  """Return the flags of a command line.

  >>> flags_of("python -m cm_jax train --config=x.py --workdir=runs/x")
  {'config': 'x.py', 'workdir': 'runs/x'}
  """
  words = [word.lstrip("-") for word in command.split() if word.startswith("--")]
  return {key: value for key, _, value in (word.partition("=") for word in words)}
