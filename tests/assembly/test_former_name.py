"""What was written for `cm_jax.build` goes on to work, and `cm_jax.build` stays a function."""

import subprocess
import sys


def test_the_former_name_of_assembly_and_the_function_of_that_name():
  program = (
    "import cm_jax\n"
    "from cm_jax.build import load_model\n"
    "assert load_model is cm_jax.load_model\n"
    "try:\n  cm_jax.build(cm_jax.default_config(), nothing=1)\n"
    "except TypeError as error:\n  assert 'nothing' in str(error), error\n"
    "else:\n  raise AssertionError\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
