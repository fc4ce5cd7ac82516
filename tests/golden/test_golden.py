"""The reference numbers, case by case, for what is implemented so far."""

import pytest

from tests import needs
from tests.golden import runner

ONLY = ("A", "B", "C", "D", "E", "F", "G", "H")
CASES = runner.cases(needs.GOLDEN, ONLY) if needs.GOLDEN.is_dir() else []


SLOW = (
  *(
    "G_jcm_losses",
    "G_jcm_samplers_editing",
    "G_jcm_ncsnpp_cd",
    "E_ect_songunet_grads",
    "E_openai_cd_unet_grads",
    "E_openai_cd_ct_losses",
  ),
  *("F_inception", "A_edm_units", "C_openai_unet_imagenet64like_cond", "B_edm2_uncond"),
  *("H_ckpt_openai_pt", "H_ckpt_edm_pkl", "G_jcm_checkpoint_state", "D_openai_editing", "E_ect_loss"),
  *("D_openai_samplers", "D_edm_ablation_sampler", "E_edm_losses", "H_ckpt_ect_snapshot", "B_edm2_units"),
  *(
    "A_edm_ddpmpp_uncond",
    "A_edm_adm_cond",
    "A_edm_fullsize_names",
    "B_edm2_fullsize_names",
    "C_openai_fullsize_names",
  ),
)


def parameter(case: runner.Case | None):
  if case is None:
    return pytest.param(None, id="no folder")
  return pytest.param(case, id=case.name, marks=pytest.mark.slow if case.name in SLOW else ())


@needs.numbers
@pytest.mark.parametrize("case", [parameter(case) for case in CASES or [None]])
def test_case(case):
  rows = list(runner.run_case(case, reports=False))
  failed = [str(row) for row in rows if row.passed is False]
  assert not failed, "\n" + "\n".join(failed)
  assert any(row.passed for row in rows)
