"""The optimiser: gradient clipping, Adam and its kin, averages of the parameters,
all inside the non-finite guard.

Every schedule is a function of the train step, which reaches the transformations as the extra argument
`step`: a skipped step then moves neither the learning rate nor mu(k) out of line with the data position.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from cm_jax.errors import UserError, one_of
from cm_jax.training.averages.track import track_averages
from cm_jax.training.schedules import learning_rate
from cm_jax.types import Array, Decay, Params, Schedule


class Rule(Protocol):
  """From gradients to a direction, before the learning rate; calling it gives the optax transformation.

  `decays_weights`: whether decoupled weight decay is part of it.
  """

  @property
  def decays_weights(self) -> bool: ...

  def __call__(self) -> optax.GradientTransformation: ...


@runtime_checkable
class SaysElementwise(Protocol):
  """What a rule may say too: `elementwise`, that in its update and its state no number depends on another of
  its array, so that arrays may be given to it as one."""

  @property
  def elementwise(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Adam:
  """Adam (Kingma & Ba 2015).

  Args:
    b1, b2: Decays of the moments, in [0, 1].
    eps: Added to the root of the second moment, in [0, 1].

  Raises:
    UserError: A value out of range.
  """

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  decays_weights: ClassVar[bool] = False
  elementwise: ClassVar[bool] = True

  def __post_init__(self):
    check_numbers(self, b1=1, b2=1, eps=1)

  def __call__(self) -> optax.GradientTransformation:
    """Return the transformation."""
    return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

  Args: as for `Adam`.
  """

  decays_weights: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class RAdam(Adam):
  """Rectified Adam (Liu et al. 2020).

  Args: as for `Adam`.
  """

  def __call__(self) -> optax.GradientTransformation:
    """Return the transformation."""
    return optax.scale_by_radam(b1=self.b1, b2=self.b2, eps=self.eps)


OPTIMIZERS: dict[str, Callable[..., Rule]] = {"adam": Adam, "adamw": AdamW, "radam": RAdam}


def check_numbers(component: Any, **largest: float) -> None:
  """Check that fields are numbers from 0 to their largest value.

  Raises:
    UserError: Names the first that is not.
  """
  for field, high in largest.items():
    if not 0 <= getattr(component, field) <= high:
      raise UserError(field, getattr(component, field), f"a number in [0, {high}]")


def scale_by_step(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
  """Multiply updates by -schedule(step): gradient descent at the learning rate of the train step."""

  def update(updates: Params, state: Any, params: Params = None, *, step: Array, **_: Any):
    rate = -schedule(step)  # once: in every array's line it is traced, lowered and compiled as often
    return jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def project_params(project: Callable[[Params], Params]) -> optax.GradientTransformation:
  """Turn updates u into project(params + u) - params, so that the updated parameters are projected ones.

  >>> to_unit = project_params(lambda params: jax.tree.map(lambda p: p / jnp.abs(p), params))
  >>> to_unit.update(jnp.array([1.0]), to_unit.init(None), jnp.array([3.0]))[0].tolist()
  [-2.0]
  """

  def update(updates: Params, params: Params) -> Params:
    return jax.tree.map(lambda new, old: new - old, project(optax.apply_updates(params, updates)), params)

  return optax.stateless(update)


def decay_weights(rate: float, frozen: Callable[[Params], Any]) -> optax.GradientTransformation:
  """Add rate times the parameter to its update, but for those that are never trained.

  Args:
    rate: The decay.
    frozen: params -> a tree of bool.

  >>> decay = decay_weights(0.5, lambda params: {"freqs": True, "weight": False})
  >>> params = {"freqs": jnp.ones(1), "weight": jnp.ones(1)}
  >>> jax.tree.map(jnp.sum, decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)[0])
  {'freqs': Array(0., dtype=float32), 'weight': Array(0.5, dtype=float32)}
  """

  def update(updates: Params, params: Params) -> Params:
    add = lambda u, p, still: u if still else u + rate * p
    return jax.tree.map(add, updates, params, frozen(params))

  return optax.stateless(update)


def nan_to_zero(infinite: float = 1e5) -> optax.GradientTransformation:
  """Replace nan by 0, +inf by `infinite` and -inf by -`infinite` in gradients: what the peers do instead of
  skipping the step."""
  clean = lambda g: jnp.nan_to_num(g, nan=0.0, posinf=infinite, neginf=-infinite)
  return optax.stateless(lambda updates, _: jax.tree.map(clean, updates))


# What becomes of gradients that are not finite. EDM, and ECT on CIFAR-10, turn infinite ones into 1e5,
# EDM2, and ECT on ImageNet, into 0; "skip" leaves them to `skip_unsound`.
NONFINITE: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
  "skip": lambda: optax.with_extra_args_support(optax.identity()),
  "zero": lambda: optax.with_extra_args_support(nan_to_zero()),
  "zero_inf": lambda: optax.with_extra_args_support(nan_to_zero(0.0)),
}


def skip_unsound(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Skip the update where the loss (extra argument `value`) or the gradients' global norm is not finite, as
  `optax.apply_if_finite` skips what is not finite itself, and with its state.

  The norm is finite only where every gradient is, so that they are looked at once. Gradients that overflow in
  the norm or in Adam's square would pass for finite, and leave infinite second moments behind.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params: Params) -> optax.ApplyIfFiniteState:
    never = lambda: jnp.zeros([], jnp.int32)  # a buffer each: the state is donated
    return optax.ApplyIfFiniteState(never(), jnp.array(True), never(), inner.init(params))

  def update(updates: Params, state: Any, params: Params = None, *, value: Array, **extra: Any):
    sound = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))
    apply = lambda: inner.update(updates, state.inner_state, params, value=value, **extra)
    skip = lambda: (optax.tree.zeros_like(updates), state.inner_state)
    updates, inner_state = jax.lax.cond(sound, apply, skip)
    in_a_row = jnp.where(sound, 0, optax.safe_increment(state.notfinite_count))
    total = jnp.where(sound, state.total_notfinite, optax.safe_increment(state.total_notfinite))
    return updates, optax.ApplyIfFiniteState(in_a_row, sound, total, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Recipe of an optimiser; calling it with the averages to track returns the guarded optax transformation.

  Args:
    rule: Of `OPTIMIZERS`.
    learning_rate, schedule, decay_steps, warmup_steps, stages, length: See `schedules.learning_rate`.
    weight_decay: Decoupled; for a rule that decays weights only.
    clip_norm: Largest global gradient norm; 0 for no clipping.
    nonfinite: "skip" the step, or of `NONFINITE` the peers' "zero" (nan to 0, infinite to 1e5: EDM, ECT) or
      "zero_inf" (both to 0: EDM2, ECT on ImageNet).

  Raises:
    UserError: A value out of range, or a decay of weights that the rule has not.
  """

  rule: Rule = Adam()  # frozen
  learning_rate: float = 1e-3
  schedule: str = "constant"
  decay_steps: float = 0
  warmup_steps: float = 0
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  nonfinite: str = "skip"
  stages: tuple[int, ...] = ()
  length: int = 0

  def __post_init__(self):
    if self.nonfinite not in NONFINITE:
      raise UserError("nonfinite", self.nonfinite, one_of(NONFINITE, self.nonfinite))
    check_numbers(self, learning_rate=1e3, weight_decay=1e3, clip_norm=float("inf"))
    if self.weight_decay and not self.rule.decays_weights:
      name = next(
        (name for name, rule in OPTIMIZERS.items() if rule is type(self.rule)), type(self.rule).__name__
      )
      raise UserError("weight_decay", self.weight_decay, f"0 with {name} (adamw decays weights)")
    self.rate()

  @property
  def elementwise(self) -> bool:
    """Whether no parameter's update depends on its array's others, but by the norm of all gradients."""
    return isinstance(self.rule, SaysElementwise) and self.rule.elementwise

  def rate(self) -> Schedule:
    """Return the learning rate as a function of the step."""
    return learning_rate(
      self.learning_rate, self.warmup_steps, self.schedule, self.decay_steps, self.stages, self.length
    )

  def __call__(
    self,
    decays: Mapping[str, float | Decay],
    project: Callable[[Params], Params] | None = None,
    frozen: Callable[[Params], Any] = lambda params: jax.tree.map(lambda _: False, params),
  ) -> optax.GradientTransformationExtraArgs:
    """Return guard(chain(clip, rule, projection, averages));
    its `update` takes `step` and the loss as `value`.

    Args:
      decays: See `track_averages`.
      project: params -> params, applied after every update and before the averages:
        EDM2's forced weight normalisation.
      frozen: params -> a tree of bool, True for what is never trained and so must not decay.
    """
    parts = [
      optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else None,
      self.rule(),
      decay_weights(self.weight_decay, frozen) if self.weight_decay else None,
      scale_by_step(self.rate()),
      project_params(project) if project else None,
      track_averages(decays),
    ]
    inner = optax.chain(*(part for part in parts if part is not None))
    # apply_if_finite gives up after so many errors in a row; the loop decides when to stop.
    guarded = skip_unsound(inner) if self.nonfinite == "skip" else optax.apply_if_finite(inner, 2**31 - 1)
    return optax.chain(NONFINITE[self.nonfinite](), guarded)
