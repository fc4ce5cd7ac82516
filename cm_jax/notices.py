"""What a person should know although the work goes on: one line on standard error, from one process."""

import sys


def notice(*lines: str) -> None:
  """Say lines, above a progress bar if there is one; only the first process of several does."""
  import jax

  if jax.process_index() != 0:
    return
  tqdm = sys.modules.get("tqdm")  # there is no bar where nobody has imported it
  for line in lines:
    said = f"cm_jax: {' '.join(line.split())}"
    if tqdm is None:
      print(said, file=sys.stderr, flush=True)
    else:
      tqdm.tqdm.write(said, file=sys.stderr)
