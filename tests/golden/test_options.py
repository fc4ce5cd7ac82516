"""Options of meta.json: every one acts as in the peer, by plain numpy written from its formulas, or fails by
name; a run that fails takes no other with it."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from cm_jax.diffusion.precond import IDDPM
from cm_jax.types import NoiseRange
from tests.golden import runner

TOL = {kind: {"default": tol, "by_key": []} for kind, tol in (("float32", 2e-5), ("float64", 1e-9))}
DENOISER = "x0 ~ sum_k w_k N(mu_k, s_k^2 I) over all C*H*W pixels, k=0,1."
SHAPE = (2, 3, 4, 4)
RANDOM = np.random.default_rng(5)
GMM = {
  "gmm_w": np.array([0.3, 0.7]), "gmm_s": np.array([0.2, 0.4]),
  "gmm_mu": RANDOM.normal(size=(2, *SHAPE[1:])) * 0.5,
}  # fmt: skip
LATENTS, NOISE = RANDOM.normal(size=SHAPE), RANDOM.normal(size=(24, *SHAPE))


def mixture(x, sigma, gmm=GMM):
  w, mu, s = gmm["gmm_w"], gmm["gmm_mu"], gmm["gmm_s"]
  variance = s**2 + sigma**2
  square = ((x[:, None] - mu[None]) ** 2).sum((2, 3, 4))
  logits = np.log(w) - 0.5 * x[0].size * np.log(variance) - 0.5 * square / variance
  r = np.exp(logits - logits.max(1, keepdims=True))
  r /= r.sum(1, keepdims=True)
  expand = lambda v: v[None, :, None, None, None]
  means = (expand(s**2) * x[:, None] + sigma**2 * mu[None]) / expand(variance)
  return (r[:, :, None, None, None] * means).sum(1)


class Watched:
  """A denoiser that keeps what it was asked."""

  def __init__(self, clip: bool = False):
    self.x, self.sigma, self.clip = [], [], clip

  def __call__(self, x, sigma):
    self.x.append(x), self.sigma.append(float(sigma))
    D = mixture(x, sigma)
    return np.clip(D, -1, 1) if self.clip else D


def karras(n: int, low: float, high: float, rho: float) -> np.ndarray:
  return (high ** (1 / rho) + np.arange(n) / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def nearest(levels, value):
  return levels[np.abs(levels[None] - np.atleast_1d(value)[:, None]).argmin(1)]


def edm(f, x, noise, levels, churn=(0, 0, np.inf, 1), midpoint=False, round_=lambda sigma: sigma):
  """EDM Alg. 2; with `midpoint` OpenAI's DPM-2, to 0 as well."""
  total, low, high, deviation = churn
  x, levels = x * levels[0], [*levels, 0.0]
  for i, (t, r) in enumerate(itertools.pairwise(levels)):
    gamma = min(total / (len(levels) - 1), math.sqrt(2) - 1) if low <= t <= high else 0
    t_hat = float(round_(t * (1 + gamma)))
    x = x + math.sqrt(max(t_hat**2 - t**2, 0)) * deviation * noise[i]
    slope = (x - f(x, t_hat)) / t_hat
    if midpoint:
      middle = ((t_hat ** (1 / 3) + r ** (1 / 3)) / 2) ** 3
      inner = x + (middle - t_hat) * slope
      x = x + (r - t_hat) * (inner - f(inner, middle)) / middle
    elif r:
      ahead = x + (r - t_hat) * slope
      x = x + (r - t_hat) * (slope + (ahead - f(ahead, r)) / r) / 2
    else:
      x = x + (r - t_hat) * slope
  return x


def ablation(f, x, noise, levels, span, churn, solver, schedule, scaling, alpha, epsilon_s):
  """EDM Alg. 1 in t with churn: dx/dt = (sigma'/sigma + s'/s) x - sigma' s/sigma D(x/s, sigma)."""
  low, high = (math.log1p(level**2) for level in span)
  beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
  beta_min = high - beta_d / 2
  exponent = lambda t: beta_d * t**2 / 2 + beta_min * t
  sigma, slope, time = {
    "vp": (
      lambda t: math.sqrt(math.expm1(exponent(t))),
      lambda t: (beta_d * t + beta_min) * math.exp(exponent(t)) / (2 * math.sqrt(math.expm1(exponent(t)))),
      lambda level: (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(level**2)) - beta_min) / beta_d,
    ),
    "ve": (math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda level: level**2),
    "linear": (lambda t: t, lambda t: 1.0, lambda level: level),
  }[schedule]
  is_vp = scaling == "vp"
  s = lambda t: 1 / math.sqrt(1 + sigma(t) ** 2) if is_vp else 1.0
  s_slope = lambda t: -sigma(t) * slope(t) * s(t) ** 3 if is_vp else 0.0

  def rate(x, t):
    linear = slope(t) / sigma(t) + s_slope(t) / s(t)
    return linear * x - slope(t) * s(t) / sigma(t) * f(x / s(t), sigma(t))

  total, bottom, top, deviation = churn
  times = [time(level) for level in levels] + [0.0]
  x = x * sigma(times[0]) * s(times[0])
  for i, (t, following) in enumerate(itertools.pairwise(times)):
    inside = bottom <= sigma(t) <= top
    gamma = min(total / len(levels), math.sqrt(2) - 1) if inside else 0
    t_hat = time(sigma(t) * (1 + gamma)) if gamma else t
    added = math.sqrt(max(sigma(t_hat) ** 2 - sigma(t) ** 2, 0))
    x = s(t_hat) / s(t) * x + added * s(t_hat) * deviation * noise[i]
    h, d = following - t_hat, rate(x, t_hat)
    if solver == "heun" and following:
      other = rate(x + alpha * h * d, t_hat + alpha * h)
      x = x + h * ((1 - 0.5 / alpha) * d + 0.5 / alpha * other)
    else:
      x = x + h * d
  return x


def write(folder: Path, name: str, meta: dict, outputs: dict, inputs: dict) -> runner.Case:
  (folder / name).mkdir()
  (folder / name / "meta.json").write_text(json.dumps({"tol": TOL, **meta}))
  arrays = {f"in_{key}": value for key, value in inputs.items()}
  np.savez(folder / name / "io.npz", **arrays, **{f"out_{key}": value for key, value in outputs.items()})
  return runner.Case(folder / name)


def traced(run: str, f: Watched, final) -> dict:
  return {f"{run}__final": final, f"{run}__call_x": np.stack(f.x), f"{run}__call_sigma": np.array(f.sigma)}


def failures(case: runner.Case) -> list[str]:
  rows = list(runner.run_case(case, reports=False))
  assert rows
  return [f"{row.what}: {row.note or row.error}" for row in rows if row.passed is False]


def edm_case(folder: Path, runs: dict, outputs: dict, **inputs) -> runner.Case:
  meta = {
    "cls": "edm_sampler / ablation_sampler",
    "runs": runs,
    "denoiser": DENOISER,
    "net": "net.sigma_min=0",
  }
  return write(folder, "D_edm", meta, outputs, {**GMM, "latents": LATENTS, "noise": NOISE, **inputs})


@pytest.mark.slow
def test_edms_sampler_takes_every_option(tmp_path):
  runs, outputs, known = {}, {}, np.array([60.0, 31.0, 9.0, 4.0, 1.0, 0.3, 0.08])
  churn = {"S_churn": 3.0, "S_min": 0.2, "S_max": 20, "S_noise": 1.01}
  for run, (n, span, rho, net) in {
    "range": (6, (0.01, 30), 5, {}),
    "narrower": (7, (0.002, 80), 7, {"sigma_min": 0.05, "sigma_max": 40.0}),
    "rounded": (5, (0.1, 50), 3, {"round_sigma": known.tolist(), "sigma_min": 0.08}),
    "named": (5, (0.1, 50), 3, {"round_sigma": "in_u"}),
  }.items():
    low, high = max(span[0], net.get("sigma_min", 0)), min(span[1], net.get("sigma_max", np.inf))
    rounds = (lambda s: nearest(known, s).squeeze()) if "round_sigma" in net else (lambda s: s)
    f = Watched()
    final = edm(f, LATENTS, NOISE, rounds(karras(n, low, high, rho)), tuple(churn.values()), round_=rounds)
    kwargs = {"num_steps": n, "sigma_min": span[0], "sigma_max": span[1], "rho": rho, **churn}
    runs[run] = {"fn": "edm_sampler", "kwargs": kwargs, "net_attrs": net}
    outputs |= {**traced(run, f, final), f"{run}__num_noise_draws": np.array(n)}
  assert not failures(edm_case(tmp_path, runs, outputs, u=known))


@pytest.mark.slow
def test_the_ablation_sampler_takes_every_option(tmp_path):
  runs, outputs = {}, {}
  churn, u = (
    {"S_churn": 4.0, "S_min": 0.1, "S_max": 30.0, "S_noise": 1.02},
    IDDPM(NoiseRange(), 0.002, 0.01, 400),
  )
  choices = {
    "vp": ("vp", "vp", "vp", "heun", 0.75, 2e-3), "ve": ("ve", "ve", "none", "euler", 1.0, 1e-3),
    "iddpm": ("iddpm", "linear", "none", "heun", 1.0, 1e-3), "edm": ("edm", "vp", "vp", "heun", 0.5, 1e-3),
    "narrower": ("edm", "linear", "none", "heun", 1.0, 1e-3),
  }  # fmt: skip
  for run, (disc, schedule, scaling, solver, alpha, epsilon_s) in choices.items():
    n, (low, high), rho = 6, (0.03, 45.0), 4
    net = {"sigma_min": 0.06, "sigma_max": 20.0} if run == "narrower" else {}
    low, high = max(low, net.get("sigma_min", 0)), min(high, net.get("sigma_max", np.inf))
    if disc == "vp":
      d, m = (math.log1p(level**2) for level in (low, high))
      beta_d = 2 * (d / epsilon_s - m) / (epsilon_s - 1)
      t = 1 + np.arange(n) / (n - 1) * (epsilon_s - 1)
      levels = np.sqrt(np.expm1(beta_d * t**2 / 2 + (m - beta_d / 2) * t))
    elif disc == "iddpm":
      inside = u.levels()[(u.levels() >= low) & (u.levels() <= high)]
      levels = inside[np.round((len(inside) - 1) / (n - 1) * np.arange(n)).astype(int)]
    else:
      levels = high * (low / high) ** (np.arange(n) / (n - 1)) if disc == "ve" else karras(n, low, high, rho)
    f = Watched()
    arguments = (tuple(churn.values()), solver, schedule, scaling, alpha, epsilon_s)
    final = ablation(f, LATENTS, NOISE, levels, (low, high), *arguments)
    kwargs = {
      "num_steps": n, "sigma_min": 0.03, "sigma_max": 45.0, "rho": rho, "solver": solver, "alpha": alpha,
      "discretization": disc, "schedule": schedule, "scaling": scaling, "epsilon_s": epsilon_s, **churn,
      "C_1": 0.002, "C_2": 0.01, "M": 400,
    }  # fmt: skip
    runs[run] = {"fn": "ablation_sampler", "kwargs": kwargs, "net_attrs": net}
    outputs |= {**traced(run, f, final), f"{run}__num_noise_draws": np.array(n)}
  assert not failures(edm_case(tmp_path, runs, outputs))


@pytest.mark.slow
def test_openais_samplers_take_every_option(tmp_path):
  runs, outputs, rho, low, high = {}, {}, 5.0, 0.01, 60.0
  common = {"sigma_min": low, "sigma_max": high, "rho": rho}
  churn = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.05}
  for run, midpoint, clip in (("heun", False, True), ("dpm", True, False)):
    f, levels = Watched(clip), karras(6, low, high, rho)
    final = edm(f, LATENTS, NOISE[1:], levels, tuple(churn.values()), midpoint)
    runs[run] = {"steps": 6, "sampler": run, "clip_denoised": clip, **common, **churn}
    outputs |= {**traced(run, f, np.clip(final, -1, 1)), f"{run}__cb_sigma": levels}
    outputs[f"{run}__cb_last_x"] = f.x[-2 if midpoint else -1]
    D = mixture(outputs[f"{run}__cb_last_x"], f.sigma[-2 if midpoint else -1])
    outputs[f"{run}__cb_last_denoised"] = np.clip(D, -1, 1) if clip else D
  for run, ts, clip in (("ends_early", [3, 12, 20], True), ("any_order", [10, 4, 7, 24], False)):
    f, grid = Watched(clip), karras(25, low, high, 7.0)  # the diffusion's rho
    x = LATENTS * high
    for k, (t, following) in enumerate(itertools.pairwise(ts)):
      x = f(x, grid[t]) + math.sqrt(max(grid[following] ** 2 - low**2, 0)) * NOISE[1 + k]
    runs[run] = {"steps": 25, "sampler": "multistep", "ts": ts, "clip_denoised": clip, **common}
    outputs |= traced(run, f, np.clip(x, -1, 1))
  meta = {"cls": "karras_sample", "runs": runs, "denoiser": DENOISER}
  noise = np.concatenate([LATENTS[None], NOISE[1:]])
  assert not failures(write(tmp_path, "D_openai", meta, outputs, {**GMM, "noise": noise}))


def test_ects_sampler_takes_levels_in_any_order(tmp_path):
  runs, outputs = {}, {}
  for run, top, middle in (("one", 30.0, None), ("rising", 20.0, [0.3, 2.0, 50.0])):
    f = Watched()
    x = f(LATENTS * top, top)
    for k, level in enumerate(middle or ()):
      x = f(x + level * NOISE[k], level)
    runs[run] = {"t_max": top, "mid_t": middle}
    outputs |= traced(run, f, x)
  meta = {"cls": "generator_fn", "runs": runs, "denoiser": DENOISER}
  assert not failures(write(tmp_path, "D_ect", meta, outputs, {**GMM, "latents": LATENTS, "noise": NOISE}))


UNKNOWN = {
  "S_ripple = 2.0 is not known here": {"kwargs": {"num_steps": 4, "S_ripple": 2.0}},
  "guidance = 3.0 is not known here": {"guidance": 3.0},
  "label_dim = 4 is not known here": {"net_attrs": {"label_dim": 4}},
  "round_sigma = 'up' is not known here": {"net_attrs": {"round_sigma": "up"}},
  "fn = 'restart_sampler' is not known here": {"fn": "restart_sampler"},
  "solver = rk45: expected": {"fn": "ablation_sampler", "kwargs": {"solver": "rk45"}},
  "num_steps = 0: expected": {"kwargs": {"num_steps": 0}},
}


def test_an_unknown_option_fails_by_name_and_takes_no_other_run_with_it(tmp_path):
  f, right = Watched(), {"fn": "edm_sampler", "kwargs": {"num_steps": 4}, "net_attrs": {}}
  final = edm(f, LATENTS, NOISE, karras(4, 0.002, 80.0, 7.0))
  runs = {f"odd{number}": {**right, **odd} for number, odd in enumerate(UNKNOWN.values())}
  outputs = {**traced("right", f, final), **{f"{run}__final": final for run in runs}}
  found = failures(edm_case(tmp_path, {**runs, "right": right}, outputs))
  for run, named, message in zip(runs, UNKNOWN, found, strict=False):
    assert message.startswith(f"{run}: ") and named in message
  assert sorted(found[len(runs) :]) == sorted(f"{run}__final: not computed" for run in runs)


def test_an_unknown_key_of_a_case_fails_by_name(tmp_path):
  sigma = np.array([0.5, 2.0])
  meta = {"cls": "KarrasDenoiser", "kwargs": {"sigma_data": 0.5}, "half_precision": True}
  case = write(tmp_path, "C_x", meta, {"std_c_in_f64": (sigma**2 + 0.25) ** -0.5}, {"sigma": sigma})
  assert failures(case) == ["half_precision: option half_precision of meta.json is not known here"]
  meta = {"cls": "KarrasDenoiser", "kwargs": {"sigma_data": 0.5, "sigma_mean": 1.0}}
  (first, *_) = failures(write(tmp_path, "C_y", meta, {}, {"sigma": sigma}))
  assert "sigma_mean = 1.0 is not known here" in first
