"""What does not go together is refused by what it is, naming field and values; allowed, it is told."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from cm_jax import config as config_lib
from cm_jax.assembly import build, load_model
from cm_jax.assembly.complete import current
from cm_jax.assembly.mismatches import _same_use, network_settings
from cm_jax.assembly.models import network_of
from cm_jax.assembly.resume import reconcile
from cm_jax.diffusion.precond import PRECONDS, anchored
from cm_jax.errors import UserError
from cm_jax.sampling.doubts import doubts
from cm_jax.storage.weights import info_of, save_weights
from cm_jax.types import NoiseRange
from tests import tiny
from tests.examples import EXAMPLES

DIT = {**EXAMPLES["network"]["dit"], "label_dropout": 0.0}  # the cheapest with a setting of no shape
OLD = Path(__file__).parents[1] / "storage" / "old"
CLASSES = {"data": {"conditional": True}}


def weights_of(config: ml_collections.ConfigDict, path, **info) -> str:
  """Write the weights folder that a run of this config would be exported to."""
  experiment = build(config)
  params = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.1, np.float32),
    jax.eval_shape(experiment.method.init, jax.random.key(0))["net"],
  )
  about = {**info_of(experiment.model({})), "source_sha256": "", "licence": "", **info}
  return str(save_weights(path, {"net": params}, about))


def config_of(objective=None, network=DIT, **changes) -> ml_collections.ConfigDict:
  config = tiny.config(objective)
  config.network = network
  for section, keys in changes.items():
    config[section].update(keys)
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def teacher(folder) -> str:
  return weights_of(config_of(), folder / "teacher")


def student(teacher: str, network=DIT, start: str = "teacher", **changes) -> ml_collections.ConfigDict:
  return config_of(tiny.CD, network, teacher={"path": teacher}, init={"path": start}, **changes)


def test_a_start_whose_settings_without_a_shape_differ_is_refused_and_may_be_allowed(teacher):
  """Audit A5: accepted, the student began 20 to 148 % off its teacher."""
  wrong = [
    ({"network": {"num_heads": 4}}, r"network\.num_heads = 4: expected 2"),
    ({"noise": {"sigma_data": 0.7}}, r"noise\.sigma_data = 0\.7: expected 0\.5, as of the model"),
    ({"precond": {"time_scale": 250.0}}, r"precond\.time_scale = 250\.0: expected 1\.0"),
  ]
  for changes, message in wrong:
    config = student(teacher)
    for section, keys in changes.items():
      with config.ignore_type(), config.unlocked():
        config[section].update(keys)
    with pytest.raises(UserError, match=rf"^config\.{message}") as refused:
      build(config)
    assert teacher in str(refused.value) and "on_mismatch" in str(refused.value)
    config.run.on_mismatch = "allow"
    assert any(line in str(refused.value) for line in build(config).cautions)
  free = {"dropout": 0.3, "label_dropout": 0.2, "remat": True, "dtype": "bfloat16"}
  assert build(student(teacher, {**DIT, **free})).cautions == ()


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("edm2", "channels_per_head", 16),
    ("edm2", "res_balance", 0.5),
    ("edm2", "attn_balance", 0.4),
    ("edm2", "concat_balance", 0.3),
    ("edm2", "label_balance", 0.25),
    ("edm2", "clip_act", None),
    ("edm2", "embedding_type", "positional"),
    ("openai_unet", "num_heads", 2),
    ("openai_unet", "num_head_channels", 16),
    ("openai_unet", "use_scale_shift_norm", True),
    ("jcm_ncsnpp", "fir_kernel", (1, 1)),
    ("jcm_ncsnpp", "skip_rescale", False),
    ("jcm_ncsnpp", "nonlinearity", "relu"),
    ("dit", "num_heads", 4),
    ("songunet", "resample_filter", (1, 2, 2, 1)),
    ("songunet", "resample_filter", (1, 3, 3, 1)),
  ],
)
def test_every_setting_that_no_parameter_shows_counts(name, field, value):
  section = EXAMPLES["network"][name]
  ((found, ours, theirs),) = network_settings({**section, field: value}, section)
  assert (found, ours) == (field, value) and theirs != value
  assert not list(network_settings(section, json.loads(json.dumps(section))))


def test_what_its_shapes_show_may_be_said_in_two_ways():
  section = EXAMPLES["network"]["edm2"]
  assert not list(network_settings({**section, "channel_mult_noise": 1, "dropres": 16}, section))
  section = EXAMPLES["network"]["songunet"]
  assert not list(network_settings({**section, "fourier_scale": 0.02}, section))  # the frequencies are loaded


def test_a_start_fed_in_another_way_is_refused_whatever_it_is_called(folder, teacher):
  trig = config_of(precond={"name": "trigflow"})
  path = weights_of(trig, folder / "trigflow")
  with pytest.raises(
    UserError, match=r"^config\.precond\.name = boundary: expected one that feeds the network"
  ):
    build(student(path))
  config = student(teacher)
  config.precond = {"name": "vp"}
  with pytest.raises(UserError, match=r"^config\.precond\.name = vp: expected one that feeds"):
    build(config)


def test_a_network_by_the_name_of_its_teacher_or_start(folder, teacher):
  """The teacher's own, without what matters to its training, whatever precond and width it has."""
  odd = {**DIT, "num_heads": 1, "depth": 2, "dropout": 0.4}
  path = weights_of(config_of(network=odd, precond={"time_scale": 3.0}), folder / "odd")
  scale = {"precond": {"time_scale": 3.0}}
  for network, start in (
    ("teacher", "teacher"),
    ({"name": "teacher", "dropout": 0.1}, "teacher"),
    ("init", path),
  ):
    config = student(path, start=start)
    with config.ignore_type(), config.unlocked():
      config.network = network
      config.precond.update(scale["precond"])
    experiment = build(config)
    found = experiment.config.network
    assert found.num_heads == 1 and found.depth == 2
    assert found.dropout == (0.0 if isinstance(network, str) else 0.1)
    again = build(ml_collections.ConfigDict(config_lib.plain_json(experiment.config)))
    assert config_lib.sha256(again.config) == config_lib.sha256(experiment.config)
  config = reconcile(student("/moved/away", {"name": "teacher"}), config_lib.plain_json(experiment.config))
  assert config.network.num_heads == 1  # a resume takes what the run has
  config = student(path, {"name": "teacher", "hidden_size": 64})
  with pytest.raises(UserError, match=r"config\.network\.hidden_size = 64: expected nothing beside the name"):
    build(config)
  config = student("", {"name": "teacher"})
  with pytest.raises(UserError, match=r"config\.teacher\.path = : expected a model"):
    build(config)


def test_the_network_of_a_run_is_read_without_its_weights():
  assert network_of(OLD / "run")["name"] == network_of(OLD / "weights")["name"] == "toy"
  with pytest.raises(UserError, match=r"^model = /no/such: expected a run folder or a weights folder"):
    network_of("/no/such")


def test_which_preconditionings_are_anchored():
  noise = NoiseRange(sigma_min=0.01, sigma_data=0.8)
  found = {name: (anchored(p(noise), True), anchored(p(noise), False)) for name, p in PRECONDS.items()}
  assert {name for name, how in found.items() if any(how)} == {"boundary", "ect"}
  assert found["ect"] == (False, True)


@pytest.mark.parametrize(
  ("objective", "precond", "right"),
  [
    ("consistency", "edm", "boundary"),
    ("consistency", "ect", "boundary"),
    ("continuous", "edm", "boundary"),
    ("denoising", "boundary", "edm or trigflow"),
    ("denoising", "ect", "edm or trigflow"),
  ],
)
def test_an_objective_without_its_boundary_or_with_one_too_many(objective, precond, right):
  """Audit C1, C2."""
  config = tiny.config(EXAMPLES["objective"][objective])
  config.precond = {"name": precond}
  (told,) = build(config).cautions
  assert told.startswith(f"config.precond.name = {precond}: expected {right}") and "\n" not in told


def test_ects_pairs_bring_their_own_boundary(teacher):
  for precond in ("edm", "ect", "boundary"):
    config = config_of(tiny.ECT, init={"path": teacher})
    config.precond = {"name": precond}
    assert not any("precond" in line for line in build(config).cautions)


@pytest.mark.parametrize(
  ("objective", "precond"), [(tiny.ECT, "ect"), ({"name": "scm", "drift": "monte_carlo"}, "edm")]
)
def test_a_method_that_tunes_a_diffusion_model_and_is_given_none_is_told(teacher, objective, precond):
  config = config_of(objective)
  config.precond = {"name": precond}
  (told,) = build(config).cautions
  assert told.startswith("--init = , config.init.path = : expected a run or weights folder")
  config.init.path, config.run.on_mismatch = teacher, "allow"
  assert not any("init.path" in line for line in build(config).cautions)


@pytest.mark.parametrize("objective", [tiny.CT, {"name": "denoising"}])
def test_a_method_that_starts_from_nothing_is_told_nothing(objective):
  config = config_of(EXAMPLES["objective"].get(objective["name"], objective))
  config.precond = {"name": "edm" if objective["name"] == "denoising" else "boundary"}
  assert build(config).cautions == ()


def test_a_teacher_is_a_diffusion_model_of_the_same_images(folder, teacher):
  """Audit C2: a consistency model's drift means nothing, also where an old folder does not say its kind."""
  path = weights_of(config_of(tiny.CT), folder / "consistency")
  config = student(path, start="")
  with pytest.raises(
    UserError, match=r"^config\.teacher\.path = .*: expected a diffusion model, not one of kind c"
  ):
    build(config)
  model = json.loads((folder / "consistency" / "model.json").read_text())
  del model["kind"]
  (folder / "consistency" / "model.json").write_text(json.dumps({**model, "format": 1}))
  with pytest.raises(
    UserError, match=r"^config\.teacher\.path = .*: expected a diffusion model, not one of kind c"
  ):
    build(config)
  config = student(teacher, start="", noise={"sigma_data": 0.3})
  with pytest.raises(UserError, match=r"^config\.noise\.sigma_data = 0\.3: expected 0\.5, as of the teacher"):
    build(config)
  assert build(student(teacher, {"name": "toy"}, start="")).cautions == ()  # another network may be taught


@pytest.mark.parametrize(
  ("field", "ours", "right"),
  [
    ("sigma_max", 90.0, r"at most 60,"),
    ("sigma_min", 0.004, r"at least 0\.006,"),
    ("sigma_min", 0.00599, None),
  ],
)
def test_a_student_stays_within_its_teachers_noise_range(folder, field, ours, right):
  path = weights_of(config_of(noise={"sigma_min": 0.006, "sigma_max": 60.0}), folder / f"narrow {ours}")
  noise = {"sigma_min": 0.006, "sigma_max": 60.0, field: ours}
  config = student(path, {"name": "toy"}, start="", noise=noise)
  config.sampler = {"name": "multistep", "sigmas": (noise["sigma_max"],)}
  if right is None:
    assert build(config).cautions == ()
    return
  with pytest.raises(UserError, match=rf"^config\.noise\.{field} = {ours}: expected {right}") as refused:
    build(config)
  assert path in str(refused.value)
  assert build(config, resumes=True).cautions == (
    str(refused.value),
  )  # of an earlier version, which asked less
  config.run.on_mismatch = "allow"
  assert build(config).cautions == (str(refused.value),)


def test_what_a_teacher_computes_with_is_its_own(folder):
  """Heads and time_scale of the teacher are no matter to a student that is another network."""
  config = config_of(network={**DIT, "num_heads": 4}, precond={"time_scale": 1000.0})
  path = weights_of(config, folder / "own")
  assert build(student(path, start="")).cautions == ()


def test_a_start_whose_output_is_taken_with_another_sign_is_refused():
  ours = PRECONDS["edm"](NoiseRange(0.002, 70.0, 0.6))

  class Turned:
    noise = ours.noise

    def __call__(self, sigma, train=False):
      found = ours(sigma, train)
      return found._replace(c_out=-found.c_out)

  assert not _same_use(ours, Turned())
  assert _same_use(ours, PRECONDS["boundary"](NoiseRange(0.02, 80.0, 0.6)))
  assert not _same_use(ours, PRECONDS["edm"](NoiseRange(0.002, 70.0, 0.8)))


@pytest.mark.slow
def test_labels_of_a_teacher_and_its_student(folder):
  """Audit C3, C4."""
  keeps = weights_of(config_of(**CLASSES), folder / "keeps")
  drops = weights_of(config_of(network={**DIT, "label_dropout": 0.1}, **CLASSES), folder / "drops")
  assert [load_model(path).guidable for path in (keeps, drops)] == [False, True]
  config = student(keeps, {**DIT, "label_dropout": 0.15}, **CLASSES)
  with pytest.raises(UserError, match=r"^config\.network\.label_dropout = 0\.15: expected 0 with a teacher"):
    build(config)
  guided = {**EXAMPLES["objective"]["scm:scd"], "guidance": (1.0, 2.0)}
  taught = lambda path: config_of(
    guided,
    {**DIT, "guidance_embedding": True},
    teacher={"path": path},
    init={"path": "teacher"},
    **CLASSES,
  )
  with pytest.raises(
    UserError, match=r"^config\.teacher\.path = .*: expected a teacher trained with label_dropout"
  ):
    build(taught(keeps))
  experiment = build(taught(drops))  # the layers of the guidance scale start without effect
  assert experiment.cautions == ()
  added = len(jax.tree.leaves(experiment.initial_params["net"])) - len(
    jax.tree.leaves(load_model(drops).params)
  )
  assert added > 0


def test_guidance_of_a_model_that_knows_no_image_without_a_label_is_told(folder):
  model = load_model(weights_of(config_of(**CLASSES), folder / "guided"))
  (told,) = doubts(model, guidance=1.5)
  assert "label_dropout = 0" in told and not doubts(model, guidance=1.0)
  takes = {**model.network, "guidance_embedding": True}
  for fine in ({"guidable": None}, {"guidable": True}, {"network": takes}):
    assert not doubts(dataclasses.replace(model, **fine), guidance=1.5)


def test_an_old_run_goes_on_and_is_told(folder, teacher):
  config = student(teacher, {**DIT, "num_heads": 4})
  stored = {**config_lib.plain_json(config), "format": 2}
  del stored["run"]["on_mismatch"]
  (told,) = build(current(stored)).cautions
  assert "config.network.num_heads = 4" in told
  config = tiny.config()
  config.run.on_mismatch = "warn"
  with pytest.raises(UserError, match=r"config\.run\.on_mismatch = warn: expected error or allow"):
    build(config)
