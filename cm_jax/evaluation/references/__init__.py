"""What samples are compared with: files of statistics of any peer, and images of any source."""

from cm_jax.evaluation.references.files import read_statistics
from cm_jax.evaluation.references.opened import Reference, check_reference, data_name, open_reference
from cm_jax.evaluation.references.statistics import Statistics, save_statistics

__all__ = [
  "Reference",
  "Statistics",
  "check_reference",
  "data_name",
  "open_reference",
  "read_statistics",
  "save_statistics",
]
