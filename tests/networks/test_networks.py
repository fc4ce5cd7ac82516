"""Every network through the properties that the rest of cm_jax relies on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS, as_net, frozen, init_params
from cm_jax.networks.weighting import LogVariance
from cm_jax.training.optim import AdamW, Optimizer
from tests.networks.small import (
  BATCH,
  CLASSES,
  LEVELS,
  SHAPE,
  TINY,
  UNLABELLED,
  evaluation,
  every_network,
  every_network_in_turn,
  far,
  in_turn,
  inputs,
  jit,
  make,
  random_params,
  shapes_of,
  split,
)


@functools.cache
def training(name):
  """Return the jitted (key, point, direction, v) -> (F, <v, J direction>, <J' v, direction>) in training."""
  net, condition = as_net(make(name)), inputs(name)[2]

  @jit
  def probe(key, point, direction, v):
    f = lambda params, x, c_noise: net(params, x, c_noise, condition, key=key)
    y, tangent = jax.jvp(f, point, direction)
    gradient = jax.vjp(f, *point)[1](v)
    along = jax.tree.map(jnp.vdot, gradient, direction)
    return y, jnp.vdot(v, tangent), sum(jax.tree.leaves(along))

  return probe


def trained(name, seed):
  rng = np.random.default_rng(2)
  draw = lambda tree: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
  point = (random_params(make(name)), *inputs(name)[:2])
  return training(name)(jax.random.key(seed), point, draw(point), draw(point[1]))


def test_every_entry_is_tested():
  assert set(TINY) == set(NETWORKS)


@every_network
def test_evaluation_is_deterministic_and_has_the_image_s_shape(name):
  x, c_noise, condition = inputs(name)
  evaluate = evaluation(name)
  y = evaluate(x, c_noise, condition)
  assert y.shape == x.shape and y.dtype == jnp.float32
  assert np.isfinite(y).all() and np.std(y) > 1e-3
  assert far(y, evaluate(x, c_noise, condition)) == 0


@pytest.mark.parametrize("name", [name for name in NETWORKS if LEVELS.get(name, "channel_mult")])
def test_levels_halve_the_image_and_double_it_back(name):
  module = make(name, **{LEVELS.get(name, "channel_mult"): (1, 2, 1)})
  y = jax.eval_shape(as_net(module), shapes_of(module), *inputs(name)[:2])
  assert y.shape == (BATCH, *SHAPE)


@every_network
def test_examples_do_not_mix(name):
  x, c_noise, condition = inputs(name)
  evaluate = evaluation(name)
  order = np.array([2, 0, 1])
  shuffled = evaluate(x[order], c_noise[order], jax.tree.map(lambda v: v[order], condition))
  assert far(shuffled, np.asarray(evaluate(x, c_noise, condition))[order]) < 1e-4


@every_network
def test_every_condition_matters(name):
  x, c_noise, condition = inputs(name)
  evaluate = evaluation(name)
  y = evaluate(x, c_noise, condition)
  assert far(y, evaluate(x, c_noise + 5, condition)) > 1e-4
  if condition.label is not None:
    assert far(y[0], evaluate(x, c_noise, condition._replace(label=np.array([1, -1, 3], np.int32)))[0]) > 1e-4
  if condition.augment_label is not None:
    assert far(y, evaluate(x, c_noise, condition._replace(augment_label=condition.augment_label + 1))) > 1e-4


@pytest.mark.parametrize("name", sorted(UNLABELLED))
def test_what_takes_no_label_refuses_one(name):
  with pytest.raises(UserError, match="^label_dim"):
    make(name, label_dim=CLASSES)


@pytest.mark.parametrize("name", [p for p in in_turn() if p.values[0] not in UNLABELLED])
def test_label_minus_one_is_no_label(name):
  x, c_noise, condition = inputs(name)
  evaluate = evaluation(name)
  none = evaluate(x, c_noise, condition._replace(label=None))
  assert far(none, evaluate(x, c_noise, condition._replace(label=np.full(BATCH, -1, np.int32)))) < 1e-6
  assert far(none[1], evaluate(x, c_noise, condition)[1]) < 1e-5


@every_network_in_turn
def test_dropout_follows_the_key(name):
  x, c_noise, condition = inputs(name)
  first, again, other = (trained(name, seed)[0] for seed in (0, 0, 1))
  assert far(first, again) == 0
  assert far(first, other) > 1e-3
  assert far(first, evaluation(name)(x, c_noise, condition)) > 1e-3


@every_network_in_turn
def test_forward_and_reverse_derivatives_agree(name):
  # <v, J u> = <J' v, u> for a direction u in the parameters, x and c_noise: sCM takes the left side, training
  # the right
  _, forward, reverse = trained(name, 0)
  assert abs(forward) > 1e-2
  assert float(forward) == pytest.approx(float(reverse), rel=1e-3)


@every_network
def test_bfloat16_stays_inside(name):
  module = make(name, dtype="bfloat16")
  params, (x, c_noise, condition) = shapes_of(module), inputs(name)
  net = lambda params, x, c_noise: as_net(module)(params, x, c_noise, condition)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  traced = jax.make_jaxpr(net)(params, x, c_noise)
  assert [out.dtype for out in traced.out_avals] == [jnp.float32]
  program = equations(traced.jaxpr)
  products = [eqn for eqn in program if eqn.primitive.name.startswith(("conv_", "dot_"))]
  on_images = [eqn for eqn in products if eqn.invars[0].aval.ndim > 2]
  assert on_images and all(var.aval.dtype == jnp.bfloat16 for eqn in on_images for var in eqn.invars)
  embedding = [eqn for eqn in products if eqn.invars[0].aval.dtype == jnp.float32]
  assert embedding and all(eqn.invars[0].aval.ndim == 2 for eqn in embedding)
  # what reads the conditioning vector, its last map in every block too, has a row an example
  rows = [eqn for eqn in products if eqn.invars[0].aval.ndim == 2 and eqn.invars[0].aval.shape[0] == BATCH]
  assert all(var.aval.dtype == jnp.float32 for eqn in rows for var in eqn.invars)


@every_network
def test_what_is_never_trained_is_known_of_every_network(name):
  fixed_of = {
    "songunet": ["['map_noise']['freqs']"],
    "edm2": ["['emb_fourier']['freqs']", "['emb_fourier']['phases']"],
    "jcm_ncsnpp": ["['GaussianFourierProjection_0']['W']"],
  }
  module = make(name, **({"embedding_type": "fourier"} if name in fixed_of else {}))
  params = {"net": shapes_of(module), "weighting": jax.eval_shape(params_of_head)}
  leaves = jax.tree_util.tree_leaves_with_path(frozen(params))
  found = {jax.tree_util.keystr(path) for path, fixed in leaves if fixed}
  head = {"['weighting']['logvar_fourier']['freqs']", "['weighting']['logvar_fourier']['phases']"}
  assert found == head | {f"['net']{path}" for path in fixed_of.get(name, ())}


def test_weight_decay_leaves_what_is_never_trained_alone():
  """Audit A6: 400k steps of adamw would have shrunk Fourier frequencies by e^-4."""
  of = lambda *values: np.array(values, np.float32)
  net = {"map_noise": {"freqs": of(2.0, -3.0)}, "out": {"kernel": of([5.0], [-7.0])}}
  params = {"net": net, "weighting": jax.device_get(jit(params_of_head)())}
  still = frozen(params)
  optimizer = Optimizer(AdamW(), learning_rate=1e-2, weight_decay=0.2)({}, None, frozen)

  @jit
  def update(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optimizer.update(zeros, optimizer.init(params), params, step=0, value=0.0)[0]

  updates = jax.device_get(update(params))
  jax.tree.map(
    lambda u, p, fixed: np.testing.assert_allclose(u, 0 * p if fixed else -2e-3 * p, rtol=1e-5, atol=1e-9),
    updates, params, still,
  )  # fmt: skip
  assert np.allclose(updates["net"]["out"]["kernel"], [[-0.01], [0.014]])
  assert not updates["net"]["map_noise"]["freqs"].any()


def params_of_head():
  return LogVariance(8).init(jax.random.key(0), jnp.zeros(1))["params"]


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    inner = [param.jaxpr for param in eqn.params.values() if hasattr(param, "jaxpr")]
    yield from (e for sub in inner for e in equations(sub)) if inner else [eqn]


@pytest.mark.parametrize("name", [pytest.param("songunet", marks=pytest.mark.slow), "dit"])
def test_bfloat16_is_close(name):
  x, c_noise, condition = inputs(name)
  module = make(name, dtype="bfloat16")
  y = jit(as_net(module))(random_params(module), x, c_noise, condition)
  exact = evaluation(name)(x, c_noise, condition)
  assert 0 < far(y, exact) < 0.1 * float(np.abs(exact).max())


@pytest.mark.slow
@every_network
def test_initial_params_are_float32_and_finite_and_follow_the_key(name):
  init = lambda two: jit(lambda key: init_params(make(name, second_time=two), key, SHAPE))
  first, other = (init(False)(jax.random.key(seed)) for seed in (0, 1))
  both = init(True)(jax.random.key(0))
  assert all(leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
  assert any(far(a, b) > 0 for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))
  same = lambda a, b: bool((a == b).all())
  assert all(jax.tree.leaves(jax.tree.map(same, first, split(both)[0])))


@every_network_in_turn
def test_remat_keeps_the_params(name):
  plain, recomputed = (make(name, remat=remat) for remat in (False, True))
  assert shapes_of(plain) == shapes_of(recomputed)
  x, c_noise, condition = inputs(name)
  loss = lambda params: as_net(recomputed)(params, x, c_noise, condition, key=jax.random.key(0)).sum()
  assert "remat" in str(jax.make_jaxpr(jax.grad(loss))(shapes_of(recomputed)))


@pytest.mark.slow
def test_remat_changes_no_gradient():
  x, c_noise, condition = inputs("dit")
  params = random_params(make("dit"))
  gradients = []
  for remat in ({}, {"remat": True}, {"remat": True, "remat_policy": "products"}):
    net = as_net(make("dit", **remat))
    loss = lambda p, net=net: jnp.square(net(p, x, c_noise, condition, key=jax.random.key(0))).sum()
    gradients.append(jit(jax.grad(loss))(params))
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0]))
  for recomputed in gradients[1:]:
    assert max(jax.tree.leaves(jax.tree.map(far, gradients[0], recomputed))) < 1e-5 * scale


@pytest.mark.parametrize("name", ["songunet", pytest.param("adm", marks=pytest.mark.slow)])
def test_a_policy_keeps_products_and_no_more(name):
  x, c_noise, condition = inputs(name)

  def products(**remat):
    net = as_net(make(name, kernels="plain", **remat))
    loss = lambda params: jnp.square(net(params, x, c_noise, condition, key=jax.random.key(0))).sum()
    graph = str(jax.make_jaxpr(jax.grad(loss))(shapes_of(make(name))))
    return graph.count("conv_general_dilated"), graph.count("rsqrt")

  whole, kept = products(), products(remat=True, remat_policy="products")
  anew = products(remat=True)
  assert whole[0] == kept[0] < anew[0]  # convolutions: once forwards, as without remat
  assert whole[1] < kept[1] == anew[1]  # norms: again


def test_a_policy_that_is_not_known():
  with pytest.raises(UserError, match="^remat_policy = block: expected .*blocks"):
    make("toy", remat=True, remat_policy="block")


@every_network
def test_guidance_starts_without_effect_and_is_refused_where_it_is_not_built_in(name):
  x, c_noise, condition = inputs(name)
  with pytest.raises(UserError, match="^guidance_embedding = False"):
    guided = condition._replace(guidance=jnp.ones(BATCH))
    jax.eval_shape(as_net(make(name)), shapes_of(make(name)), x, c_noise, guided)
  module = make(name, guidance_embedding=True)
  added = set(shapes_of(module)) - set(shapes_of(make(name)))
  assert added and added <= {"map_guidance", "emb_guidance", "guidance_gain"}
  initial = shapes_of(module)
  assert all(leaf.dtype == jnp.float32 for name in added for leaf in jax.tree.leaves(initial[name]))


@pytest.mark.parametrize(
  ("name", "fields", "field"),
  [
    ("songunet", {"embedding_type": "fourrier"}, "embedding_type"),
    ("songunet", {"encoder_type": "skipped"}, "encoder_type"),
    ("songunet", {"decoder_type": "residual"}, "decoder_type"),
    ("songunet", {"resample_filter": (1, 2, 1)}, "resample_filter"),
    ("songunet", {"channel_mult": (1, 1, 1, 1)}, "channel_mult"),
    ("songunet", {"channel_mult": ()}, "channel_mult"),
    ("songunet", {"channel_mult": 2}, "channel_mult"),
    ("songunet", {"num_blocks": 0}, "num_blocks"),
    ("songunet", {"dropout": 1.0}, "dropout"),
    ("songunet", {"dtype": "float8"}, "dtype"),
    ("adm", {"label_dropout": -0.1}, "label_dropout"),
    ("edm2", {"augment_dim": 9}, "augment_dim"),
    ("edm2", {"channel_mult_emb": 0}, "channel_mult_emb"),
    ("openai_unet", {"model_channels": 48}, "model_channels"),
    ("openai_unet", {"num_heads": -1}, "num_heads"),
    ("jcm_ncsnpp", {"progressive_combine": "mean"}, "progressive_combine"),
    ("dit", {"patch_size": 3}, "patch_size"),
    ("dit", {"num_heads": 5}, "hidden_size"),
    ("jcm_ncsnpp", {"conditional": False, "second_time": True}, "second_time"),
    ("toy", {"width": 0}, "width"),
  ],
)
def test_a_bad_field_is_named(name, fields, field):
  with pytest.raises(UserError) as error:
    make(name, **fields)
  assert error.value.field == field


def test_widths_that_norms_and_heads_do_not_divide_are_refused():
  for name, fields in [
    ("songunet", {"model_channels": 18}),
    ("edm2", {"model_channels": 9, "channels_per_head": 4}),
  ]:
    with pytest.raises(UserError, match="^model_channels"):
      random_params(make(name, **fields))


@pytest.mark.parametrize(
  ("name", "side", "channels", "fields", "parameters"),
  [
    # the sizes of the authors' state dicts; that of DiT-XL/2 counts its 256 fixed positions
    ("songunet", 32, 3, {"channel_mult": (2, 2, 2), "augment_dim": 9}, 55_733_891),
    ("adm", 64, 3, {"label_dim": 1000}, 295_899_267),
    (
      "dit",
      32,
      4,
      {"label_dim": 1000, "out_channels": 8, "hidden_size": 1152, "depth": 28, "num_heads": 16},
      675_129_632 - 256 * 1152,
    ),
  ],
)
def test_published_sizes(name, side, channels, fields, parameters):
  module = NETWORKS[name](
    **{"img_resolution": side, "in_channels": channels, "out_channels": channels, **fields}
  )
  shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), (side, side, channels)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
