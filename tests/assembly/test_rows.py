"""What the shipped configs of the papers say, against the papers and the official codes (audit B and D)."""

import pytest

from cm_jax.assembly import assemble, call, complete
from cm_jax.cli.config_flags import read_file
from cm_jax.networks.lpips import LPIPS
from tests.configs.rows import CONFIGS, config_of


def test_imagenet_consistency_training_in_two_variants():
  """CM table 3 (8e-6, from scratch) and the command of the released model (1e-4, the teacher): audit B2."""
  paper, code = (read_file(f"{CONFIGS / 'imagenet64_ct.py'}{variant}") for variant in ("", ":code"))
  assert (paper.optimizer.learning_rate, paper.init.path) == (8e-6, "")
  assert (code.optimizer.learning_rate, code.init.path) == (1e-4, "teacher")
  assert [config.objective.target.convention for config in (paper, code)] == ["paper", "code"]
  rest = lambda config: {
    **complete(config).to_dict(),
    **dict.fromkeys(("optimizer", "init")),
    "objective": {**config.objective.to_dict(), "target": None},
  }
  assert rest(paper) == rest(code) and paper.network.dtype == "float32"
  assert paper.matmul_precision == code.matmul_precision == "tensorfloat32"


def test_cifars_consistency_training_has_the_codes_target_decay():
  """mu(k) = exp(s0 ln mu0 / (N(k) - 1)), N from 2 (audit B3)."""
  config = config_of("cifar10_ct")
  config.network, config.num_images = {"name": "toy"}, 40 * 512
  method = assemble(config, (8, 8, 1), 0)
  for step in (0, 7, 39):
    found = method.objective.progress(step)
    decay = 0.9 ** (2 / (int(found["num_scales"]) - 1))
    assert float(found["target_decay"]) == pytest.approx(decay, rel=1e-6)
  assert float(method.objective.progress(0)["target_decay"]) == pytest.approx(0.81)


@pytest.mark.parametrize(
  ("row", "pooling"),
  [("cifar10_cd", "max"), ("cifar10_ct", "max"), ("imagenet64_cd", "average"), ("imagenet64_ct", "average")],
)
def test_lpips_of_a_row_is_that_of_its_authors(row, pooling):
  """Audit B1."""
  distance = complete(config_of(row)).objective.distance.to_dict()
  distance.pop("name")
  assert call(LPIPS, distance, "distance").pooling == pooling


def test_rows_against_their_sources():
  edm, ect, sct, scd = (
    config_of(name) for name in ("imagenet64_edm", "cifar10_ect", "cifar10_sct", "cifar10_scd")
  )
  assert edm.data.source == "zip:imagenet64.zip"  # B4: cropped as ADM, which the reference statistics are of
  assert "--crop=adm" in (CONFIGS / "imagenet64_edm.py").read_text()
  assert ect.noise.sigma_min == 0.003  # B12
  for config in (sct, scd):  # B16: sCM's row of a plain DDPM++
    assert config.objective.levels.to_dict() == {"name": "lognormal", "P_mean": -1.0, "P_std": 1.8}
