"""The rule that Inception's weights are drawn by: other numbers than the fixture's act, other words fail."""

import json
import zlib

import numpy as np
import pytest

from tests.golden import f_inception
from tests.golden.options import UnknownOption
from tests.golden.runner import Case

CALL = "[...] Input uint8 -> TF1 bilinear (no half-pixel offset) to 299x299 -> (x-128)/128. BN eps=0.001. "
ROWS = "resized_rows: rows [2,7] of image 3 after resize."


def case(tmp_path, **changes):
  meta = {"call": CALL + ROWS, "layout": "images NCHW uint8", "SEED": 9, **changes}
  (tmp_path / "meta.json").write_text(json.dumps(meta))
  return Case(tmp_path)


def test_numbers_of_the_rule_act(tmp_path):
  rule = (
    "for every NAME: z=... '*.conv.weight': z*sqrt(3/(I*kh*kw)); '*.bn.running_var': 2+0.5*|z|; "
    "'*.bn.num_batches_tracked': 0; 'fc.weight' (8,5): z/sqrt(5); 'fc.bias': 0.25*z. Then cast."
  )
  shapes = {
    "a.conv.weight": (4, 2, 3, 1),
    "a.bn.running_var": (7,),
    "a.bn.num_batches_tracked": (),
    "fc.weight": (8, 5),
    "fc.bias": (8,),
  }
  found = f_inception.weights(shapes, case(tmp_path, weights_rule=rule))
  z = lambda name: np.random.default_rng([9, zlib.crc32(name.encode())]).standard_normal(shapes[name])
  np.testing.assert_allclose(found["a.conv.weight"], z("a.conv.weight") * np.sqrt(3 / 6), rtol=1e-6)
  np.testing.assert_allclose(found["a.bn.running_var"], 2 + 0.5 * abs(z("a.bn.running_var")), rtol=1e-6)
  np.testing.assert_allclose(found["fc.weight"], z("fc.weight") / np.sqrt(5), rtol=1e-6)
  np.testing.assert_allclose(found["fc.bias"], 0.25 * z("fc.bias"), rtol=1e-6)
  assert found["a.bn.num_batches_tracked"] == 0 and found["fc.bias"].dtype == np.float32
  with pytest.raises(UnknownOption, match="nothing for other"):
    f_inception.weights({"other": (2,)}, case(tmp_path, weights_rule=rule))
  with pytest.raises(UnknownOption, match="uniform"):
    f_inception.parsed("'fc.bias': uniform(z). Then")


def test_rows_are_those_that_are_said(tmp_path):
  assert f_inception.rows_of(case(tmp_path)) == (3, [2, 7])
  with pytest.raises(UnknownOption, match="the rows"):
    f_inception.rows_of(case(tmp_path, call=CALL))


@pytest.mark.parametrize(
  "change",
  [
    {"call": CALL.replace("0.001", "1e-5") + ROWS},
    {"call": CALL.replace("299x299", "342x342") + ROWS},
    {"call": CALL.replace("no half-pixel", "half-pixel") + ROWS},
    {"layout": "NHWC"},
  ],
)
def test_another_network_or_resize_fails_by_name(tmp_path, change):
  f_inception.check_text(case(tmp_path))
  with pytest.raises(UnknownOption, match="is known"):
    f_inception.check_text(case(tmp_path, **change))
