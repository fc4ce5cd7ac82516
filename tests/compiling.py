"""Compiling for tests, where a program runs once: half of XLA's compile time goes into optimisations that
never pay back."""

import functools

import jax

quick_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
