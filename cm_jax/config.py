"""Every default of a run, in one place: `configs/*.py` start from `default()` and change what their paper row
changes.

Sections with a `name` choose a component; the other keys of the section are that component's fields, and
those left out take its defaults. To choose another component replace the whole section:
`config.network = {"name": "toy", "width": 16}`. `config.network = {"name": "teacher"}` takes the teacher's
own, `{"name": "init"}` that of the model it starts from.

There is one clock. `num_images` is the length of a run; durations are in images (`*_images`) and become steps
when the config is assembled, so that another batch size or length changes every derived value.
`decay_images`, `total_images` and `stage_images` left 0 follow `num_images`. `config.run` and `config.mesh`
may differ when a run resumes, nothing else may.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cm_jax.errors import UserError, one_of


def default() -> ml_collections.ConfigDict:
  """Return the config of an EDM diffusion model on CIFAR-size images (EDM table 7, "DDPM++ VP"),
  the start of every other config."""
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "batch_size": 512,  # global: all devices of all hosts
      "accumulation": 1,  # micro-batches inside one step
      "num_images": 204_800_000,  # the length of the run
      # Of float32 products on GPUs and TPUs: "highest" is float32; "tensorfloat32" and "bfloat16" are faster,
      # and too coarse where a fine grid compares close noise levels; "default" is as JAX is set. float16 is
      # not offered: it needs loss scaling, and TensorFloat-32 has its mantissa without.
      "matmul_precision": "highest",
      "noise": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0},
      "data": {
        "source": "digits:train",
        # leave out images that cannot be decoded; each is decoded once before training to find them
        "skip_corrupt": False,
        # how images of any size become squares: "center", "edm" or "adm"; "none": they are squares already
        "crop": "none",
        "resolution": 0,  # side of the squares, or, without a crop, what it must be; 0: any
        "alpha": "",  # what lies behind transparent parts: "white" or "black"; "": they are refused
        "exif": True,  # turn photos as their EXIF data asks
        "image_shape": (),  # () takes it from the source
        "num_classes": 0,  # 0 takes it from the source, if conditional
        "class_names": (),  # () takes them from the source, if conditional
        "conditional": False,
        "flip": False,
        # {}: none; or EDM's augmentation, {"p": 0.12} and other fields of cm_jax.data.augment.Augment,
        # with network.augment_dim = 9
        "augment": {},
      },
      "network": {
        "name": "songunet",
        "model_channels": 128,
        "channel_mult": (2, 2, 2),
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.13,
        "label_dropout": 0.0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "fourier_scale": 16.0,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
        "dtype": "float32",
        "remat": False,
        "remat_policy": "blocks",
        "kernels": "auto",
      },
      "precond": {"name": "edm"},
      "objective": {"name": "denoising", "levels": {"name": "lognormal", "P_mean": -1.2, "P_std": 1.2}},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "schedule": "constant",  # or "cosine", "linear": to zero over decay_images; "inverse_sqrt"
        "decay_images": 0,  # 0: num_images
        "warmup_images": 10_000_000,  # 0: none
        "clip_norm": 0.0,  # 0: no clipping
        "nonfinite": "skip",  # or the peers' nan-to-zero: "zero" (EDM, ECT), "zero_inf" (EDM2)
      },
      "averages": {"ema": {"name": "half_life", "half_life_images": 500_000, "ramp_up": 0.05}},
      "teacher": {"path": "", "step": -1, "average": "ema"},
      "init": {"path": "", "step": -1, "average": "ema"},
      "sampler": {"name": "heun", "num_steps": 18},
      # the noise levels of `sample --nfe=N`, such as {"2": (80.0, 0.8)}; what search-steps finds comes first
      "sigmas_by_nfe": {},
      "run": {
        "num_steps": 0,  # stop earlier than num_images says; 0: at its end
        "log_every": 100,
        "sample_every": 5_000,
        "num_samples": 64,
        "checkpoint_every": 5_000,
        "keep_checkpoints": 2,
        "keep_every": 0,  # 0: none for ever; else one each so many steps
        "snapshot_every": 0,  # 0: none; else store the averages each so many steps, for `cm_jax ema`
        # 0: never; else measure self-consistency and gradient noise on held-out data each so many steps
        "diagnose_every": 0,
        # every 0: never; else a cheap metric of samples of the first average, from the same noise each time,
        # each so many steps: into metrics.jsonl under the metric's name. features: "digits", or the folder of
        # own ones; nfe 0: sampled as the run's sampler says
        "evaluate": {"every": 0, "metric": "fd", "features": "digits", "num": 1000, "nfe": 0},
        # after so many steps in a row that were not finite, and were skipped: "stop"; or "rollback" to the
        # last checkpoint from before them and on with the data after them, so many times at most
        "max_nonfinite": 20,
        "on_skips": "stop",
        "max_rollbacks": 3,
        # a data set that takes no more is decoded once into RAM; a larger one whenever a batch needs it
        "ram_gb": 16.0,
        "data_workers": 4,  # processes that decode a larger one; 0: a thread
        "on_other_data": "error",  # or "allow": resume although the data set's fingerprint changed
        # or "allow": only say what does not go together (assembly/mismatches.py), such as a start whose
        # network has another filter
        "on_mismatch": "error",
      },
      # devices: data x fsdp, -1 for all that are left; fsdp share one copy of what is large. rules: pairs
      # (pattern, strategy) for arrays by name, see training/layout.py
      "mesh": {"data": -1, "fsdp": 1, "rules": ()},
    }
  )


# Sections without defaults to check their keys against; what they are passed to does.
FREE_FORM = ("averages", "augment", "sigmas_by_nfe")
# What a run stored before a key existed meant, where that is not today's default.
BEFORE: dict[str, Any] = {
  "data": {"exif": False},  # photos were read as they lie in their files, whatever they said of up and down
  "matmul_precision": "default",
  "run": {"on_mismatch": "allow"},
}
MAY_DIFFER = ("run", "mesh")  # the sections that may differ when a run resumes
_ABOUT = ("format", "config_sha256", "kind")  # what config.json says of itself


def default_config() -> ml_collections.ConfigDict:
  """Return `default()`, under the name it has in the package."""
  return default()


def variant_of(argument: str, known: Sequence[str]) -> str:
  """Return the variant that a config file is asked for, `FILE.py:ARGUMENT`; without an argument its first.

  Args:
    argument: What `get_config` is given.
    known: The file's `VARIANTS`.

  Raises:
    UserError: It has no such variant.

  >>> variant_of("", ("lpips", "l2")), variant_of("l2", ("lpips", "l2"))
  ('lpips', 'l2')
  """
  if argument and argument not in known:
    raise UserError("variant", argument, one_of(known, argument))
  return argument or known[0]


def content(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
  """Return a config as plain JSON types, without `run`, `mesh` and what config.json says of itself:
  what identifies a run.

  >>> sorted(set(default()) - set(content(default())))
  ['mesh', 'run']
  """
  plain = plain_json(config)
  return {key: value for key, value in plain.items() if key not in (*MAY_DIFFER, *_ABOUT)}


def plain_json(config: Any) -> dict[str, Any]:
  """Return a config as plain JSON types (tuples become lists).

  Raises:
    UserError: A value is something else, such as an array.
  """
  if isinstance(config, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    config = config.to_dict()
  try:
    return json.loads(json.dumps(config))
  except TypeError:
    _refuse_other_types(config, "config")
    raise


def _refuse_other_types(value: Any, field: str) -> None:
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _refuse_other_types(inner, f"{field}.{key}")
  elif isinstance(value, (list, tuple)):
    for index, inner in enumerate(value):
      _refuse_other_types(inner, f"{field}[{index}]")
  elif not isinstance(value, (str, int, float, bool, type(None))):
    expected = "text, a number, a bool, None, or a list or dict of these, as JSON has them"
    expected += " (images or a network of yours: python:MODULE:CLASS)"
    raise UserError(field, f"<{type(value).__name__}>", expected)


def sha256(config: Any) -> str:
  """Return the sha256 of the sorted JSON of `content(config)`: `config_sha256` in every record."""
  return hashlib.sha256(json.dumps(content(config), sort_keys=True).encode()).hexdigest()
