"""The types everything in cm_jax speaks: one vocabulary, hardly any behaviour.

Shapes: B examples, H x W pixels, C channels (NHWC). Images are in [-1, 1]; `sigma` is the noise level of the
variance-exploding process x_t = x + sigma z, in the same units.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.struct
import jax

from cm_jax.errors import UserError

Array = jax.Array
Params = Any  # a pytree of float32 arrays; {"net": ..., "weighting": ...} for what is trained
# "image": uint8 [B,H,W,C] or float32 latents; "label": int32 [B] if labelled; "augment_label":
# float32 [B, augment_dim] if augmented
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Noise = Callable[[Any, tuple[int, ...]], Array]  # (k, shape) -> the k-th standard normal draw
Schedule = Callable[[Any], Array]  # of the train step
# What a model's D(x, sigma) is: the mean of the data given x; the end of the trajectory through x;
# with a second time both and all between.
KINDS = ("diffusion", "consistency", "flow_map")
# How products of float32 are computed: in float32, with TensorFloat-32's 10 bits of mantissa, in bfloat16's
# 7, or as JAX is set to. CPUs know the first only.
PRECISIONS = ("highest", "tensorfloat32", "bfloat16", "default")
# How multistep sampling adds noise again: up to the next level, or all of it.
RENOISE = ("cm", "ect")
NOISE_LIMITS = (1e-12, 1e12)  # of which float32 still has the square


@dataclasses.dataclass(frozen=True)
class NoiseRange:
  """The noise levels of a run: `config.noise`, shared by preconditioning, pairs, weights and samplers.

  Args:
    sigma_min: Smallest noise level, the paper's epsilon; > 0.
    sigma_max: Largest noise level, the paper's T; > sigma_min.
    sigma_data: Standard deviation of the data in [-1, 1]; > 0.
    rho: Curvature of the Karras grid (EDM eq. 5); >= 1.

  Raises:
    UserError: A value out of range.
  """

  sigma_min: float = 0.002
  sigma_max: float = 80.0
  sigma_data: float = 0.5
  rho: float = 7.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(field.name, value, "a positive finite number")
      if not NOISE_LIMITS[0] <= value <= NOISE_LIMITS[1]:
        expected = f"{NOISE_LIMITS[0]:g} to {NOISE_LIMITS[1]:g}, whose square float32 still has"
        raise UserError(field.name, value, expected)
    if self.sigma_max <= self.sigma_min:
      raise UserError("sigma_max", self.sigma_max, f"more than sigma_min = {self.sigma_min}")
    if self.rho < 1:
      raise UserError("rho", self.rho, "at least 1")


class Domain(NamedTuple):
  """The noise levels that a network was made for, where its preconditioning says it; a run's range may be
  narrower.

  Attributes:
    low, high: The range.
    levels: The only ones that it knows, if any; a sampler rounds its grid to them.
  """

  low: float
  high: float
  levels: tuple[float, ...] = ()


class Condition(NamedTuple):
  """What a network is told besides x and its noise level; every field may be None, which says nothing.

  Attributes:
    label: Class, int32 [B]; -1 for none.
    augment_label: What augmentation did to the image, float32 [B, augment_dim]; zeros: nothing.
    guidance: Guidance scale, [B].
    until: The second time of a two-time network, a noise level s >= 0, [B]: where a flow map ends. None:
      at 0.
  """

  label: Array | None = None
  augment_label: Array | None = None
  guidance: Array | None = None
  until: Array | None = None

  @classmethod
  def of(cls, batch: Batch) -> "Condition":
    """Return what a batch says: its label and augmentation label."""
    return cls(batch.get("label"), batch.get("augment_label"))


class Denoiser(Protocol):
  """D(x, sigma), everything else bound: x [B,H,W,C], sigma [B] -> [B,H,W,C]."""

  def __call__(self, x: Array, sigma: Array, /) -> Array: ...


class FlowMap(Protocol):
  """g(x, sigma, s), the two-time denoiser, 0 <= s <= sigma [B]:
  X_{sigma -> s}(x) = (s/sigma) x + (1 - s/sigma) g.

  s = sigma is D, s = 0 the consistency function; a Denoiser is a FlowMap with s bound.
  """

  def __call__(self, x: Array, sigma: Array, s: Array, /) -> Array: ...


class Net(Protocol):
  """The raw network F_theta, of any architecture: F [B,H,W,C]; further channels are a variance,
  which nobody reads.

  `key=None` is evaluation mode; a key feeds the dropout.
  """

  def __call__(
    self, params: Params, x: Array, c_noise: Array, condition: Condition = ..., *, key: Array | None = None
  ) -> Array: ...


class Scalings(NamedTuple):
  """The four functions of sigma [B] of EDM eq. 7."""

  c_skip: Array
  c_out: Array
  c_in: Array
  c_noise: Array


class TrigScalings(NamedTuple):
  """How a network's raw F is TrigFlow's velocity: F_trig(x_t / sigma_data, t)
  = sign F(x_t / sigma_data, c_noise), t [B].

  `rate` is cos t sin t dc_noise/dt, which stays finite at both ends.
  """

  sign: float
  c_noise: Array
  rate: Array


class Precond(Protocol):
  """A preconditioning: (sigma [B], train) -> Scalings; `trigflow` says what F is in TrigFlow,
  None where it is nothing; `domain` what noise levels it is for, None where any."""

  @property
  def noise(self) -> NoiseRange: ...

  @property
  def trigflow(self) -> Callable[[Array], TrigScalings] | None: ...

  @property
  def domain(self) -> Domain | None: ...

  def __call__(self, sigma: Array, train: bool = False) -> Scalings: ...


class Preconditioned(Protocol):
  """A network with its preconditioning, without its weights: binds params and a condition to a Denoiser.

  `params` is the whole tree; the network reads `params["net"]`. `raw` is F itself,
  which sCM needs near sigma = 0.
  """

  @property
  def precond(self) -> Precond: ...

  def __call__(self, params: Params, condition: Condition = ..., key: Array | None = None) -> Denoiser: ...

  def flow_map(self, params: Params, condition: Condition = ..., key: Array | None = None) -> FlowMap: ...

  def raw(
    self, params: Params, x: Array, c_noise: Array, condition: Condition = ..., key: Array | None = None
  ) -> Array: ...


class Drift(Protocol):
  """dx/dsigma of a probability-flow ODE: x [B,H,W,C], sigma [B] -> [B,H,W,C]."""

  def __call__(self, x: Array, sigma: Array, /) -> Array: ...


class Distance(Protocol):
  """d(a, b) per example: two [B,H,W,C] -> [B]; `params` holds the weights of a learned distance (LPIPS).

  `is_norm`: whether it is a norm of a - b, which decides its limit in continuous time.
  `load` reads the weights; None where there are none. `abstract` is what it would return, as shapes.
  """

  @property
  def is_norm(self) -> bool: ...

  def load(self) -> Params: ...

  def abstract(self) -> Params: ...

  def __call__(self, a: Array, b: Array, params: Params = None, /) -> Array: ...


class Pairs(Protocol):
  """A pairing of noise levels: (key, n, step) -> t > r >= 0, [n] each.

  `scales` is N(k) where the pairs are of a grid, else None; `metrics(step)` says where the curriculum is.
  """

  @property
  def scales(self) -> Any: ...

  def __call__(self, key: Array, n: int, step: Array, /) -> tuple[Array, Array]: ...

  def metrics(self, step: Array | int, /) -> Metrics: ...


class Sampler(Protocol):
  """Turns a Denoiser into images: (denoiser, noise, shape) -> x [B,H,W,C].

  `noise(k, shape)` is the k-th standard normal draw. Noise levels are physical. The caller jits.
  """

  @property
  def nfe(self) -> int: ...

  @property
  def sigmas(self) -> tuple[float, ...]: ...

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array: ...


class Operator(Protocol):
  """An editing task: what is measured of an image, and how measured and generated content merge.

  `shown` is the measurement as people read it, an image in [-1, 1]; `forward` as the equations have it.
  """

  def forward(self, x: Array, /) -> Array: ...

  def shown(self, x: Array, /) -> Array: ...

  def merge(self, x: Array, y: Array, /) -> Array: ...


class Source(Protocol):
  """A data set: `len(source)`, `source[i] -> {"image": uint8 [H,W,C], "label":
  int}`, and what identifies its content."""

  @property
  def fingerprint(self) -> str: ...

  @property
  def num_classes(self) -> int: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class ObjectiveOutput(NamedTuple):
  """What an objective returns; `noise_level` [B] is the sigma each example's loss belongs to (for loss by
  noise level).

  `metrics` are scalars; `by_level` holds further values [B] that are averaged per noise-level bin,
  as the loss is.
  """

  loss: Array
  per_example: Array
  noise_level: Array
  metrics: Metrics
  by_level: Metrics = {}


class Context(NamedTuple):
  """What an objective compares: the student being trained, and the frozen things beside it."""

  student: Preconditioned
  teacher: Preconditioned | None = None
  target_params: Params = None
  teacher_params: Params = None
  distance_params: Params = None


class Decay(Protocol):
  """mu(step) of an average, in [0, 1); `gain` is 1 - mu(step), where float32 cannot say it through mu."""

  def __call__(self, step: Array | int, /) -> Array | float: ...

  def gain(self, step: Array | int, /) -> Array | float: ...


@dataclasses.dataclass(frozen=True)
class Needs:
  """What an objective asks of the rest of a run; the default asks nothing.

  Attributes:
    teacher: `context.teacher` must be given.
    trigflow: Student and teacher must be networks whose raw F has a meaning in TrigFlow (`precond.trigflow`).
    second_time: The student must be a two-time network (`network.second_time`).
    target_decay: mu(step) of the target average that the optimiser carries as `averages["target"]`; None
      where the target is the student itself.
    weighting: Draws the parameters of the loss's own head, `params["weighting"]`; None if it has none.
    weighting_projection: What is applied to that head after every update where the network has a projection
      too (EDM2); None for a head whose weights are free.
    stages: The steps before which the student becomes the teacher and the optimiser starts afresh, with the
      end of the last (progressive distillation); empty for all others.
    group: So many consecutive rows of a batch belong together, and micro-batches must not tear them.
    guidance: The student must take a guidance scale, and the data must have labels.
    boundary: The student's preconditioning must make f(x, sigma_min) = x, exactly.
    start: Its paper starts from a diffusion model's weights.
    distance: The distance whose weights the step is to be given; None where the loss has none.
  """

  teacher: bool = False
  trigflow: bool = False
  second_time: bool = False
  target_decay: Decay | None = None
  weighting: Callable[[Array], Params] | None = None
  weighting_projection: Callable[[Params], Params] | None = None
  stages: tuple[int, ...] = ()
  group: int = 1
  guidance: bool = False
  boundary: bool = False
  start: bool = False
  distance: Distance | None = None


class Objective(abc.ABC):
  """A loss in two halves: `draw` holds all its randomness (as arrays), `loss` none.

  Tests and fixtures pass their own draws to `loss`. `trains` is the kind of the model it makes.
  """

  trains: ClassVar[str]

  @property
  @abc.abstractmethod
  def needs(self) -> Needs:
    """What it asks of the rest."""

  def progress(self, step: Array | int) -> Metrics:
    """Return where its curricula stand: N(k), the stage, mu(k)."""
    return {}

  def finest_gap(self, step: int) -> float | None:
    """Return the smallest (t - r)/t between two noise levels whose f it compares at a step; None where it
    compares none: then rounding does not grow as steps shrink."""
    return None

  @abc.abstractmethod
  def draw(self, key: Array, batch: Batch, step: Array) -> Any:
    """Return all randomness of a batch's loss, as a pytree of arrays."""

  @abc.abstractmethod
  def loss(self, params: Params, context: Context, batch: Batch, draws: Any, step: Array) -> ObjectiveOutput:
    """Return the loss for given draws; `batch["image"]` is float in [-1, 1]."""

  def __call__(
    self, params: Params, context: Context, batch: Batch, key: Array, step: Array
  ) -> ObjectiveOutput:
    """Draw, then return the loss."""
    return self.loss(params, context, batch, self.draw(key, batch, step), step)


@flax.struct.dataclass
class TrainState:
  """All that training changes. `step` counts batches, skipped ones too, and alone drives every schedule."""

  step: Array
  params: Params
  opt_state: Any

  def __repr__(self) -> str:
    return f"TrainState(step={self.step}, {parameter_count(self.params):,} parameters)"


def parameter_count(params: Params) -> int:
  """Return how many numbers a tree of arrays, or of their shapes, holds.

  >>> import jax.numpy as jnp
  >>> parameter_count({"net": {"w": jnp.zeros((3, 4)), "b": jax.ShapeDtypeStruct((4,), float)}})
  16
  """
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
