"""Options of the loss cases and of editing: every one acts as in the peers, by plain numpy written from their
formulas on other values than the fixtures', or fails by name."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.golden import runner
from tests.golden.test_options import DENOISER, TOL, failures, mixture

NET = "ToyNet: F(x, c) = conv2(silu(conv1(x) + u[None,:,None,None]*(c_scale*c)[:,None,None,None] + ...)"
RANDOM = np.random.default_rng(11)
N, C, S, WIDTH, LABELS = 6, 3, 8, 5, 4
draw = lambda *shape, scale=1.0: (RANDOM.normal(size=shape) * scale).astype(np.float32).astype(np.float64)
WEIGHTS = {
  "w1": draw(WIDTH, C, 3, 3, scale=0.3), "b1": draw(WIDTH), "u": draw(WIDTH),
  "w2": draw(C, WIDTH, 3, 3, scale=0.3), "b2": draw(C), "wl": draw(WIDTH, LABELS),
}  # fmt: skip
IMAGES, Z, NORMAL = draw(N, C, S, S, scale=0.5), draw(N, C, S, S), draw(N, 1, 1, 1)
UNIFORM = RANDOM.uniform(size=(N, 1, 1, 1))
each = lambda values: np.reshape(values, (-1, 1, 1, 1))


def conv(x, weight, bias):
  padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
  return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[None, :, None, None]


def net(x, c, scale=1.0, label=None, weights=WEIGHTS):
  told = scale * np.ravel(c)[:, None] * weights["u"]
  hidden = conv(x, weights["w1"], weights["b1"]) + told[:, :, None, None]
  if label is not None:
    hidden = hidden + (label @ weights["wl"].T)[:, :, None, None]
  return conv(hidden / (1 + np.exp(-hidden)), weights["w2"], weights["b2"])


def edm(x, sigma, sigma_data, F=net):
  total = sigma**2 + sigma_data**2
  inside = F(x / np.sqrt(each(total)), np.log(sigma) / 4)
  return each(sigma_data**2 / total) * x + each(sigma * sigma_data / np.sqrt(total)) * inside


def written(
  folder: Path, name: str, meta: dict, outputs: dict, inputs: dict, weights: dict | None
) -> runner.Case:
  (folder / name).mkdir()
  (folder / name / "meta.json").write_text(json.dumps({"tol": TOL, **meta}))
  arrays = {f"in_{key}": value for key, value in inputs.items()}
  np.savez(folder / name / "io.npz", **arrays, **{f"out_{key}": value for key, value in outputs.items()})
  if weights is not None:
    np.savez(folder / name / "weights.npz", **weights)
  return runner.Case(folder / name)


def ect_run(stage, P_mean=-1.1, P_std=2.0, q=2.0, k=8.0, b=1.0, c=0.0, adj="sigmoid", **_):
  """ECT's loss; without a stage it is that of stage 0."""
  t = np.exp(NORMAL.ravel() * P_std + P_mean)
  shrunk = q ** -((stage or 0) + 1.0)
  ratio = 1 - shrunk * (1 + k / (1 + np.exp(b * t)) if adj == "sigmoid" else 1)
  r = np.maximum(t * ratio, 0)
  D = edm(IMAGES + each(t) * Z, t, 0.5)
  safe = np.where(r > 0, r, 1.0)
  target = np.where(each(r) > 0, edm(IMAGES + each(safe) * Z, safe, 0.5), IMAGES)
  square = ((D - target) ** 2).sum((1, 2, 3))
  loss = (np.sqrt(square + c**2) - c if c > 0 else np.sqrt(square)) / (t - r)
  return {"t": t, "r": r, "loss": loss, "ratio": np.array(0.0 if stage is None else 1 - shrunk)}


ECT = {
  "no_stage": {"loss_kwargs": {"q": 3.0}, "stage": None},
  "own_curve": {"loss_kwargs": {"q": 2.5, "k": 5.0, "b": 0.6, "P_mean": -0.4, "P_std": 1.3}, "stage": 2},
  "constant_huber": {"loss_kwargs": {"adj": "const", "q": 6, "c": 0.08, "P_mean": 0.2}, "stage": 1},
  "unread": {"loss_kwargs": {"cut": 2.0, "sigma_data": 0.9}, "stage": 0},
}


@pytest.mark.slow
def test_ects_loss_takes_every_option(tmp_path):
  outputs = {}
  for run, given in ECT.items():
    found = ect_run(given["stage"], **given["loss_kwargs"])
    outputs |= {f"{run}__{name}": value for name, value in found.items()}
  t = np.geomspace(0.01, 60, 9)
  rows = [t * np.maximum(1 - 5.0 ** -(stage + 1.0) * (1 + 8 / (1 + np.exp(t))), 0) for stage in (0, 0, 1, 2)]
  outputs["tab_sigmoid_q5"] = np.stack(rows)
  weights = {name: value for name, value in WEIGHTS.items() if name != "wl"}
  inputs = {"images": IMAGES, "eps": Z, "rnd_normal": NORMAL, "t_grid": t}
  meta = {"cls": "ECMLoss", "runs": ECT, "net": NET}
  assert not failures(written(tmp_path, "E_ect", meta, outputs, inputs, weights))


def vp(sigma, x, label, M, beta_d, beta_min):
  t = (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(sigma**2)) - beta_min) / beta_d
  return x - each(sigma) * net(x / np.sqrt(each(sigma**2 + 1)), (M - 1) * t, 0.001, label)


EDM_RUNS = {
  "edm": {
    "loss": "EDMLoss", "loss_kwargs": {"P_mean": -0.7, "P_std": 0.9, "sigma_data": 0.6},
    "precond": "EDMPrecond", "precond_kwargs": {"sigma_data": 0.6},
  },
  "edm_apart": {  # the loss's sigma_data is not the network's
    "loss": "EDMLoss", "loss_kwargs": {"sigma_data": 0.8}, "precond": "EDMPrecond", "precond_kwargs": {},
  },
  "vp": {
    "loss": "VPLoss", "loss_kwargs": {"beta_d": 12.0, "beta_min": 0.3, "epsilon_t": 0.01},
    "toy_c_scale": 0.001,
    "precond": "VPPrecond", "precond_kwargs": {"beta_d": 15.0, "beta_min": 0.2, "M": 500, "epsilon_t": 1e-4},
  },
  "ve": {
    "loss": "VELoss", "loss_kwargs": {"sigma_min": 0.1, "sigma_max": 30.0},
    "precond": "VEPrecond", "precond_kwargs": {"sigma_min": 0.05},
  },
}  # fmt: skip


@pytest.mark.slow
def test_edms_losses_take_every_option(tmp_path):
  label, outputs = np.eye(LABELS)[[0, 3, 1, 1, 2, 0]], {}
  labelled = lambda x, c: net(x, c, 1.0, label)
  for run, given in EDM_RUNS.items():
    own = given["loss_kwargs"]
    if given["loss"] == "EDMLoss":
      sigma = np.exp(NORMAL.ravel() * own.get("P_std", 1.2) + own.get("P_mean", -1.2))
      weight = (sigma**2 + own["sigma_data"] ** 2) / (sigma * own["sigma_data"]) ** 2
    elif given["loss"] == "VPLoss":
      t = 1 + UNIFORM.ravel() * (own["epsilon_t"] - 1)
      sigma = np.sqrt(np.expm1(own["beta_d"] * t**2 / 2 + own["beta_min"] * t))
      weight = 1 / sigma**2
    else:
      sigma = own["sigma_min"] * (own["sigma_max"] / own["sigma_min"]) ** UNIFORM.ravel()
      weight = 1 / sigma**2
    x = IMAGES + each(sigma) * Z
    D = {
      "EDMPrecond": lambda: edm(x, sigma, given["precond_kwargs"].get("sigma_data", 0.5), labelled),
      "VPPrecond": lambda: vp(sigma, x, label, 500, 15.0, 0.2),
      "VEPrecond": lambda: x + each(sigma) * labelled(x, np.log(sigma / 2)),
    }[given["precond"]]()
    outputs |= {f"{run}__sigma": sigma, f"{run}__loss": each(weight) * (D - IMAGES) ** 2}
  inputs = {"images": IMAGES, "labels": label, "n": Z, "rnd_normal": NORMAL, "rnd_uniform": UNIFORM}
  meta = {"cls": "EDMLoss / VPLoss / VELoss", "runs": EDM_RUNS, "net": NET}
  assert not failures(written(tmp_path, "E_edm", meta, outputs, inputs, WEIGHTS))


UNKNOWN = {
  "E_ect": ("ECMLoss", {
    "P_skew = 1.0": {"loss_kwargs": {"P_skew": 1.0}, "stage": 0},
    "ema = 0.5": {"loss_kwargs": {}, "stage": 0, "ema": 0.5},
    "adj = 'cosine'": {"loss_kwargs": {"adj": "cosine"}, "stage": 0},
  }),
  "E_edm": ("EDMLoss / VPLoss / VELoss", {
    "P_skew = 1.0": {**EDM_RUNS["edm"], "loss_kwargs": {"P_skew": 1.0}},
    "rho = 5": {**EDM_RUNS["edm"], "precond_kwargs": {"rho": 5}},
    "precond = 'FlowPrecond'": {**EDM_RUNS["edm"], "precond": "FlowPrecond"},
    "loss = 'FlowLoss'": {**EDM_RUNS["edm"], "loss": "FlowLoss"},
  }),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_option_of_a_loss_fails_by_name(tmp_path, name):
  cls, odd = UNKNOWN[name]
  runs = {f"odd{number}": given for number, given in enumerate(odd.values())}
  inputs = {
    "images": IMAGES,
    "eps": Z,
    "n": Z,
    "rnd_normal": NORMAL,
    "rnd_uniform": UNIFORM,
    "t_grid": NORMAL,
  }
  inputs["labels"] = np.eye(LABELS)[[0] * N]
  outputs = {f"{run}__loss": np.zeros(N) for run in runs}
  found = failures(written(tmp_path, name, {"cls": cls, "runs": runs, "net": NET}, outputs, inputs, WEIGHTS))
  for named, run in zip(odd, runs, strict=True):
    said = [line for line in found if line.startswith(f"{run}: ")]
    assert said and f"{named} is not known" in said[0], (named, found)


def edited(task, images, x, noise, levels, low, mask):
  """OpenAI's loop: x0 is clipped, keeps what is known, and is noised to the next level."""
  size = 8

  def keep(x0):
    if task == "i":
      return images * mask + x0 * (1 - mask)
    blocks = lambda v: v.reshape(len(v), C, v.shape[2] // size, size, -1, size)
    mean = lambda v: np.broadcast_to(blocks(v).mean((3, 5), keepdims=True), blocks(v).shape).reshape(v.shape)
    return x0 - mean(x0) + mean(images)

  for k in range(len(levels) - 1):
    x0 = keep(np.clip(mixture(x, levels[k], MIXTURES[task]), -1, 1))
    x = x0 + math.sqrt(max(levels[k + 1] ** 2 - low**2, 0)) * noise[k]
  return x


MIXTURES = {
  task: {
    "gmm_w": np.array([0.4, 0.6]),
    "gmm_mu": draw(2, C, size, size, scale=0.4),
    "gmm_s": np.array([0.3, 0.25]),
  }
  for task, size in (("c", 8), ("i", 8), ("s", 16))
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kwargs", "ts"),
  [
    ({"steps": 25, "t_min": 0.01, "t_max": 50.0, "rho": 5.0}, [0, 7, 24]),
    ({"steps": 12, "rho": 3.0}, [0, 2, 5, 8]),  # ends before the last index: noise is left
    ({}, [1, 30, 20, 39]),
  ],
)
def test_editing_takes_every_option(tmp_path, kwargs, ts):
  steps, rho = kwargs.get("steps", 40), kwargs.get("rho", 7.0)
  low, high = kwargs.get("t_min", 0.002), kwargs.get("t_max", 80.0)
  levels = [(high ** (1 / rho) + t / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for t in ts]
  pattern = (RANDOM.uniform(size=(8, 8, C)) > 0.6).astype(np.uint8) * 200
  counts, sizes = {"c": 2, "i": 14, "s": 2}, {"c": 8, "i": 8, "s": 16}
  inputs, outputs = {"i_pattern_hwc_uint8": pattern}, {}
  known = (pattern > 0).astype(float).transpose(2, 0, 1)
  mask = np.where(each(np.arange(14) // 7 % 2 == 0), known[None], 1 - known[None])
  for task, count in counts.items():
    shape = (count, C, sizes[task], sizes[task])
    images, x, noise = np.tanh(draw(*shape)), draw(*shape) * high, draw(len(ts) - 1, *shape)
    inputs |= {f"{task}_{key}": value for key, value in MIXTURES[task].items()}
    inputs |= {f"{task}_images": images, f"{task}_x": x, f"{task}_noise": noise}
    if task != "c":
      shown = images * mask - (1 - mask) if task == "i" else images
      outputs[f"{task}_final"] = edited(task, shown, x, noise, levels, low, mask)
    outputs[f"{task}_call_sigma"] = np.array(levels[:-1])
  meta = {"cls": "iterative_colorization (c_), ...", "kwargs": kwargs, "ts": ts, "denoiser": DENOISER}
  assert not failures(written(tmp_path, "D_edit", meta, outputs, inputs, None))
  odd = {**meta, "kwargs": {**kwargs, "sigma_turn": 2.0}}
  assert any(
    "sigma_turn = 2.0 is not known" in line
    for line in failures(written(tmp_path, "D_odd", odd, outputs, inputs, None))
  )
