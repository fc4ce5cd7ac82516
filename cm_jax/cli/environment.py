"""What the shell's environment may say to JAX, and what of it counts here."""

import os
import sys
import warnings

from cm_jax.errors import UserError
from cm_jax.storage import bucket

JAX_CACHE = "JAX_COMPILATION_CACHE_DIR"

# Settings of JAX that change the random numbers or the types of a run, which nothing but its config may do.
OURS = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_numpy_dtype_promotion": "standard",
}


def keep_ours() -> None:
  """Put back the settings that the environment has changed, with a line on standard error for each."""
  import jax

  for name, value in OURS.items():
    given = os.environ.get(name.upper())
    if getattr(jax.config, name) != value and given is not None:
      told = f"{name.upper()} = {given} is set aside: with it a run or a sample would be another one"
      print(f"cm_jax: {told}", file=sys.stderr)
      jax.config.update(name, value)


def keep_programs() -> None:
  """Keep compiled programs between runs (a 10 s compile becomes 1 s), where there is a place for them.

  Without a place, as in a home folder of a compute node that cannot be written, all is compiled anew.

  Raises:
    UserError: Others may write to the folder: what lies there would be run. What JAX's own setting names is
      in an object store that cannot be reached.
  """
  import jax

  from cm_jax.storage.downloads import NoCache, cache_folder

  if given := os.environ.get(JAX_CACHE):
    if bucket.is_bucket(given):  # which JAX takes, by etils
      bucket.check(JAX_CACHE, given)
    return
  try:
    folder = cache_folder() / "xla"
  except NoCache as error:
    if "CM_JAX_CACHE" in os.environ:  # somebody meant it
      print(f"cm_jax: {error} (programs are compiled anew)", file=sys.stderr)
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  # A full disk there costs time, and is no news for a log.
  warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")


def check_platform() -> None:
  """Start the devices.

  Raises:
    UserError: JAX_PLATFORMS names a platform that is not there.
  """
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX asserts where a plugin fails with a warning
    given = os.environ.get("JAX_PLATFORMS")
    reason = str(error).split(" (set JAX_PLATFORMS", maxsplit=1)[0] or "no device was found"
    if given is None:
      raise UserError("devices", "", f"at least one that JAX can use ({reason})") from None
    expected = (
      f'cpu, or a platform of this machine that is installed, as by pip install "jax[cuda]" ({reason})'
    )
    raise UserError("JAX_PLATFORMS", given, expected) from None
