"""Data in an object store (`data/sources/stored.py`, `storage/fetched.py`): fetched whole, once, and never
beyond its folder. Against moto's S3 server; real S3 and GCS were not."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cm_jax import cli
from cm_jax.data.prepare import Prepare
from cm_jax.data.prepare.cifar import find_archive
from cm_jax.data.sources import SOURCES, Framing, open_source, stored, told, validate_source
from cm_jax.errors import UserError
from cm_jax.evaluation.features import stored as features
from cm_jax.evaluation.given import open_images
from cm_jax.evaluation.references.opened import open_reference
from cm_jax.storage import bucket, fetched, lines, whole
from cm_jax.storage.pictures import encode_png
from tests import needs
from tests.cli.weights import weights_folder
from tests.evaluation.test_report import write_run
from tests.storage.moto_server import server

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
  ("spec", "expected"),
  [
    ("digits:s3://b/x", "digits of this machine, or in an object store one of: folder, latents, lmdb,"),
    ("python:s3://b/x", "python of this machine, or in an object store one of: folder"),
    ("folder:s3://", "folder:s3://BUCKET/NAME"),
    ("zip:gs:///", "zip:gs://BUCKET/NAME"),
  ],
)
def test_what_is_no_data_of_a_store_is_refused_unasked(spec, expected):
  for act in (validate_source, open_source):
    with pytest.raises(UserError) as error:
      act(spec)
    assert str(error.value).startswith(f"source = {spec}: expected {expected}")


def test_kinds_in_a_store_are_kinds():
  assert set(stored.STORED) <= set(SOURCES)


@pytest.mark.parametrize(
  ("name", "can"),
  [
    ("a/b c.png", True),
    ("ü.png", True),
    ("../x.png", False),
    ("a/../../x", False),
    ("a//b", False),
    ("/etc/x", False),
    ("./x", False),
    ("a/..", False),
    ("a\0b", False),
    ("\udcff", False),
    ("x" * 256, False),
    ("x" * 255, True),
  ],
)
def test_names_that_climb_out_or_are_none(name, can):
  assert fetched._can_be_a_file(name) == can


def test_a_copy_is_called_by_the_end_of_its_name_and_by_all_that_it_is(monkeypatch, tmp_path):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path))
  first = fetched._place("s3://b/a/set/", ["1"])
  assert first.name.endswith("-set") and first == fetched._place("s3://b/a/set/", ["1"])
  others = [fetched._place(*about) for about in (("s3://b/c/set/", ["1"]), ("s3://b/a/set/", ["1", "2"]))]
  assert len({first, *others}) == 3
  long = fetched._place(f"s3://b/{'ü' * 500}.npz", [])
  assert len(long.name.encode()) < 160 and long.suffix == ".npz"


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "objects"


@pytest.fixture(scope="module")
def served():
  needs.buckets()
  server().make("data")
  return server()


@pytest.fixture
def place(served, request):
  return f"s3://data/{request.node.name.replace('[', '-').strip(']')}/set"


def put(folder: Path, place: str) -> None:
  """Copy a folder there, and one whose name begins alike."""
  bucket.filesystem(place).put(f"{folder}/", f"{place}/", recursive=True)
  bucket.filesystem(place).pipe_file(f"{place}2/other.png", b"of another set")


def draw(folder: Path, count: int) -> Path:
  """Make a folder of two classes, of what is no image and of what is hidden."""
  random = np.random.default_rng(count)
  for number in range(count):
    file = folder / ("cat", "ü dog")[number % 2] / f"{number}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_png(random.integers(0, 256, (5, 7, 3), np.uint8)))
  (folder / "cat" / "notes.txt").write_text("x" * 1000)
  (folder / "cat" / ".hidden.png").write_bytes(b"no image")
  return folder


def alike(first, second) -> None:
  """Check that two sources hold the same."""
  assert len(first) == len(second) and first.num_classes == second.num_classes
  assert first.fingerprint == second.fingerprint and told(first) == told(second)
  for index in (0, len(first) - 1):
    one, other = first[index], second[index]
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.slow
def test_a_folder_of_many_objects_is_that_of_a_disk(place, cache, tmp_path, capsys):
  here = draw(tmp_path / "here", 150)
  put(here, place)
  bucket.filesystem(place).pipe_file(f"{place}/empty/", b"")  # as consoles make folders
  validate_source(f"folder:{place}")
  there = open_source(f"folder:{place}")
  alike(there, open_source(f"folder:{here}"))
  (copy,) = cache.glob("*-set")
  assert sorted(path.name for path in copy.iterdir()) == ["cat", "ü dog"]
  assert (copy / "cat" / "notes.txt").read_bytes() == b"" and not (copy / "cat" / ".hidden.png").exists()
  before = (copy / "cat" / "0.png").stat().st_mtime_ns
  open_source(f"folder:{place}")
  assert list(cache.glob("*-set")) == [copy] and (copy / "cat" / "0.png").stat().st_mtime_ns == before
  # another content is another copy, also of the same size
  (here / "cat" / "2.png").write_bytes((here / "cat" / "0.png").read_bytes())
  bucket.filesystem(place).put_file(str(here / "cat" / "2.png"), f"{place}/cat/2.png")
  alike(open_source(f"folder:{place}"), open_source(f"folder:{here}"))
  assert len(list(cache.glob("*-set"))) == 2 and not list(cache.glob("*.part"))


@pytest.mark.slow
def test_latents_an_archive_of_lsun_and_a_set_of_tfds(place, cache, tmp_path, monkeypatch):
  random, latents = np.random.default_rng(3), tmp_path / "latents"
  latents.mkdir()
  np.save(latents / "mean.npy", random.normal(size=(6, 4, 4, 2)).astype(np.float32))
  np.save(latents / "label.npy", np.arange(6) % 3)
  (latents / "stats.json").write_text(json.dumps({"shift": [0.5, 1], "scale": [2, 0.25]}))
  (latents / "images.bin").write_bytes(b"not read")
  put(latents, f"{place}/latents")
  alike(open_source(f"latents:{place}/latents"), open_source(f"latents:{latents}"))
  assert not list(cache.rglob("images.bin"))

  import gzip

  (tmp_path / "lsun").mkdir()
  (tmp_path / "lsun" / "data.mdb").write_bytes(
    gzip.decompress((REPO / "tests" / "data" / "lsun.mdb.gz").read_bytes())
  )
  put(tmp_path / "lsun", f"{place}/lsun")
  frame = Framing("center", 16)
  for end in ("", "/data.mdb"):
    validate_source(f"lmdb:{place}/lsun{end}")
    alike(
      open_source(f"lmdb:{place}/lsun{end}", framing=frame),
      open_source(f"lmdb:{tmp_path / 'lsun'}", framing=frame),
    )

  Prepare(source="digits:test", out=str(tmp_path / "sets"), format="array_record", name="few")()
  put(tmp_path / "sets", f"{place}/sets")
  here = open_source(f"tfds:few:train[:50]:{tmp_path / 'sets'}")
  validate_source(f"tfds:few:train:{place}/sets")
  alike(open_source(f"tfds:few:train[:50]:{place}/sets"), here)
  monkeypatch.setenv("TFDS_DATA_DIR", f"{place}/sets")
  assert len(open_source("tfds:few")) == 360


@pytest.mark.slow
@pytest.mark.parametrize(
  ("keys", "expected"),
  [
    (["a/1.png", "../../up.png"], "up.png: expected names that files can have"),
    (["a/1.png", "a//2.png"], "names that files can have"),
    (["a.png", "a.png/2.png"], "no object a.png too, of which it is in the folder"),
    (["a/.b.png"], "a folder of an object store with such files in it"),
    ([], "PATH of what is there, unlike s3://data/"),
  ],
  ids=["out", "empty", "twice", "hidden", "none"],
)
def test_names_that_no_folder_can_have_and_none(place, cache, tmp_path, monkeypatch, keys, expected):
  bucket.filesystem(place).pipe_file(f"{place}2/x.png", b"x")
  store = bucket.filesystem(place)
  found = {f"{place[5:]}/{key}": {"size": 3, "ETag": "1", "type": "file"} for key in keys}
  if keys:
    monkeypatch.setattr(store, "find", lambda *_, **__: found)
    monkeypatch.setattr(store, "exists", lambda *_, **__: True)
  with pytest.raises(UserError, match=expected):
    validate_source(f"folder:{place}")
    open_source(f"folder:{place}")
  assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_no_room_and_objects_that_change_on_the_way(place, cache, tmp_path, monkeypatch):
  put(draw(tmp_path / "here", 4), place)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 16000))
    with pytest.raises(UserError, match="a place with 1[67],... bytes of free space, not 16,000"):
      open_source(f"folder:{place}")
  store, fetch = bucket.filesystem(place), fetched._fetch

  def fetch_and_change(*about):
    fetch(*about)
    store.pipe_file(f"{place}/cat/0.png", b"another")

  monkeypatch.setattr(fetched, "_fetch", fetch_and_change)
  with pytest.raises(UserError, match="objects that stay as they are while they are fetched"):
    open_source(f"folder:{place}")
  assert not list(cache.glob("*-set"))


FETCHES = """
import sys
from cm_jax.data.sources import open_source
print(open_source(sys.argv[1]).fingerprint)
"""


@pytest.mark.slow
def test_a_fetch_that_is_cut_off_counts_for_nothing_and_is_gone_on_with_by_one_at_a_time(
  place, cache, tmp_path
):
  """Killed in the middle; a store that is away; then two processes at once, of which one fetches the rest."""
  here = draw(tmp_path / "here", 400)
  put(here, place)
  command = [sys.executable, "-c", FETCHES, f"folder:{place}"]
  start = lambda: subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
  brought = lambda: len(list(cache.glob("*.part/new/*/*.png")))
  first, count = start(), 0
  while not 40 < count < 400:
    count = brought()
    time.sleep(0.001)
  first.send_signal(signal.SIGKILL)
  first.wait()
  left = {path: path.stat().st_mtime_ns for path in cache.glob("*.part/new/*/*.png")}
  assert 0 < len(left) < 400 and not list(cache.glob("*-set"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(bucket, "PATIENCE", 0.5)
    server().is_open = False
    try:
      with pytest.raises(UserError, match=rf"source = {place}: expected a .* that can be fetched \(.*onnect"):
        open_source(f"folder:{place}")
    finally:
      server().is_open = True
  both = [start(), start()]
  said = {process.communicate(timeout=120)[0].strip() for process in both}
  assert said == {open_source(f"folder:{here}").fingerprint}
  (copy,) = cache.glob("*-set")
  again = {path.name: path.stat().st_mtime_ns for path in copy.glob("*/*.png")}
  assert len(again) == 400 and all(again[path.name] == at for path, at in left.items())
  assert not list(cache.glob("*.part"))
  print(f"killed after {len(left)} of 400 files, which the next one kept")


def succeed(capsys, *arguments: str) -> str:
  status, said = cli.run(list(arguments)), capsys.readouterr()
  assert status == 0, said
  return said.out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_what_is_prepared_from_a_store_into_one_is_that_of_a_disk(
  place, cache, tmp_path, capsys, monkeypatch, form
):
  here = draw(tmp_path / "photos", 9)
  put(here, f"{place}/photos")
  out = "set.zip" if form == "zip" else "sets"
  named = [] if form == "zip" else ["--name=few"]
  prepare = ["data", "prepare", f"--format={form}", "--crop=center", "--resolution=4", *named]
  said = [
    succeed(capsys, *prepare, f"--source=folder:{top}/photos", f"--out={top}/{out}")
    for top in (place, str(tmp_path))
  ]
  # the description of a set for tfds names its source
  plain = [re.sub(r": [\d,]+ bytes;", "", text) for text in said]
  assert plain[0].replace(place, str(tmp_path)) == plain[1]
  made = lambda top: f"zip:{top}/{out}" if form == "zip" else f"tfds:few:train:{top}/{out}"
  alike(open_source(made(place)), open_source(made(tmp_path)))
  store = bucket.filesystem(place)
  assert store.cat_file(f"{place}/{out}.png") == (tmp_path / f"{out}.png").read_bytes()
  assert not [name for name in store.find(place) if name.endswith((".lock", ".tmp"))]
  assert not list((cache.parent / "prepare").iterdir())
  assert cli.run([*prepare, f"--source=folder:{place}/photos", f"--out={place}/{out}"]) == 2
  assert f"--out = {place}/{out}: expected a path that does not exist yet" in capsys.readouterr().err
  assert cli.run([*prepare, f"--source=folder:{place}/photos", f"--out={place}/photos/{out}"]) == 2
  assert f"--out = {place}/photos/{out}: expected a place outside {place}/photos" in capsys.readouterr().err


@pytest.mark.slow
def test_a_set_that_cannot_all_be_put_there_is_not_there(place, cache, monkeypatch):
  copy, done = whole._copy, []

  def copy_one(source, target):
    if done[2:]:
      raise PermissionError("Access Denied")
    done.append(target)
    copy(source, target)

  monkeypatch.setattr(whole, "_copy", copy_one)
  with pytest.raises(UserError, match=rf"^out = {place}: expected a place that can be written"):
    Prepare(source="digits:test", out=place, format="array_record", name="few")()
  assert len(done) == 3
  assert [name.rpartition("/")[2] for name in bucket.filesystem(place).find(place.removesuffix("/set"))] == [
    "set.png"
  ]


@pytest.mark.slow
def test_the_archive_of_cifar_may_be_there(place, cache, tmp_path):
  bucket.filesystem(place).pipe_file(f"{place}/a.tar.gz", b"no archive")
  with pytest.raises(UserError, match=r"^input = s3://.*cifar-10-binary.tar.gz with sha256 c4a38"):
    find_archive("cifar10", f"{place}/a.tar.gz")
  with pytest.raises(UserError, match=r"^input = s3://.*b.tar.gz: expected a file that is there"):
    find_archive("cifar10", f"{place}/b.tar.gz")


@pytest.mark.slow
def test_reports_comparisons_and_features_there_are_those_of_a_disk(place, cache, tmp_path, capsys):
  runs = tmp_path / "runs"
  for folder in ("edm", "cd", "edm/0", "cd/0", "cd/1"):
    write_run(runs / folder)
  put(runs, f"{place}/runs")
  for command, files in (("report", ["json", "md"]), ("compare", ["json", "md"])):
    said = [succeed(capsys, command, f"--folder={top}") for top in (f"{place}/runs", str(runs))]
    assert said[0] == said[1]
    name = {"report": "report", "compare": "comparison"}[command]
    for end in files:
      assert whole.read(f"{place}/runs/{name}.{end}") == whole.read(runs / f"{name}.{end}")
  params = {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
  features.write(f"{place}/features", params, {"seed": 5})
  found, info = features.read(f"{place}/features")
  assert info == {"seed": 5} and found["dense"]["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.slow
def test_a_folder_there_is_measured_and_is_a_reference(place, cache, tmp_path):
  here = draw(tmp_path / "photos", 7)
  put(here, place)
  there = open_images(place, "images")
  assert (len(there), there.shape, there.fingerprint) == (
    7,
    (5, 7, 3),
    open_images(str(here), "images").fingerprint,
  )
  found = open_reference(place, "digits", Framing())
  assert found.images is not None and found.images.fingerprint == there.fingerprint
  with pytest.raises(UserError, match=r"^images = s3://data/.*/none: expected a file that is there"):
    open_images(f"{place}/none", "images")


@pytest.mark.slow
def test_a_benchmark_measures_weights_there_and_writes_there(place, cache, tmp_path, capsys):
  put(weights_folder(tmp_path / "weights"), f"{place}/weights")
  arguments = ["--what=sampling", f"--model={place}/weights", "--batch=2", "--nfe=1", "--rounds=1"]
  succeed(capsys, "benchmark", *arguments, f"--out={place}/rates.jsonl", f"--png={place}/rates.png")
  assert [row["batch"] for row in lines.read(f"{place}/rates.jsonl")] == [2]
  assert whole.read(f"{place}/rates.png")[:4] == b"\x89PNG"
