"""Weights by name, by address and of a Hub: what was meant or one line, and nothing fetched twice."""

import hashlib
import http.server
import io
import json
import re
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from cm_jax import load_model
from cm_jax.cli import run
from cm_jax.errors import UserError
from cm_jax.storage import downloads, published
from cm_jax.storage.model_json import MODEL, WEIGHTS
from tests.cli.weights import weights_folder
from tests.serving import served

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
  return weights_folder(tmp_path_factory.mktemp("weights") / "mine", shape=(4, 4, 3))


def zipped(entries: dict[str, bytes]) -> bytes:
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
    for name, data in entries.items():
      file.writestr(name, data)
  return content.getvalue()


def files_of(weights: Path, below: str = "") -> dict[str, bytes]:
  return {f"{below}{name}": (weights / name).read_bytes() for name in (WEIGHTS, MODEL)}


def serving(content: bytes, asked: list[str]):
  def answer(handler, start):
    asked.append(handler.path)
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])

  return served(answer)


@pytest.mark.parametrize("below", ["", "cd/"])
def test_an_address_with_its_pin_is_a_weights_folder_and_is_fetched_once(weights, below):
  content, asked = zipped(files_of(weights, below)), []
  address = f"https://host/a/cd.zip#sha256={hashlib.sha256(content).hexdigest()}"
  with serving(content, asked) as opener:
    for _ in range(2):
      folder = Path(published.folder_of(address, opener))
      assert {path.name: path.read_bytes() for path in folder.iterdir()} == files_of(weights)
  assert asked == ["/a/cd.zip"]
  assert published.folder_of(address) == str(folder)  # from the cache, by load_model too
  assert load_model(address).provenance["path"] == address


def test_without_a_pin_the_error_has_it(weights):
  content, asked = zipped(files_of(weights)), []
  sha256 = hashlib.sha256(content).hexdigest()
  with serving(content, asked) as opener:
    with pytest.raises(
      UserError, match=rf"^model = https://host/x.zip: expected .*#sha256={sha256} "
    ) as found:
      published.folder_of("https://host/x.zip", opener)
    pin = re.search(r"expected (\S+)", str(found.value))[1]
    assert published.folder_of(pin, opener)
  assert len(asked) == 1  # what was looked at is kept


@pytest.mark.parametrize(
  "entries",
  [
    {WEIGHTS: b"x"},
    {"a/model.json": b"{}", "b/model.json": b"{}", WEIGHTS: b"x"},
    {"a/b/model.json": b"{}", "a/b/weights.safetensors": b"x"},
    {"../model.json": b"{}", "../../weights.safetensors": b"x"},
    {MODEL: b"{}", WEIGHTS: b"\0" * (3 << 20)},  # a thousand times what is sent
  ],
)
def test_a_zip_of_something_else_is_one_line_and_leaves_nothing(entries, cache):
  content = zipped(entries)
  address = f"https://host/cd.zip#sha256={hashlib.sha256(content).hexdigest()}"
  with serving(content, []) as opener, pytest.raises(UserError, match="expected a zip of a weights folder"):
    published.folder_of(address, opener)
  assert not list(cache.glob("weights-*[0-9a-f]"))


def test_other_content_than_was_pinned_is_refused(weights):
  content = zipped(files_of(weights))
  with serving(content[:-1] + b"!", []) as opener, pytest.raises(UserError, match="^download = .*sha256"):
    published.folder_of(f"https://host/cd.zip#sha256={hashlib.sha256(content).hexdigest()}", opener)


@pytest.mark.parametrize(
  "given", ["http://host/cd.zip", "https://host/cd.zip#sha256=12", "hf:name", "hf:a/../b"]
)
def test_what_is_no_address_or_repository_is_one_line(given, capsys):
  assert run(["sample", f"--model={given}", "--out=x.png"]) == 2
  assert re.fullmatch(r"cm_jax sample: --model = .*: expected .*\n", capsys.readouterr().err)


class Hub:
  """Stands for huggingface.co: one repository, whose main branch is at COMMIT."""

  def __init__(self, files: dict[str, bytes]):
    self.asked: list[str] = []
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_HEAD(self):
        self.do_GET()

      def do_GET(self):
        hub.asked.append(f"{self.command} {self.path}")
        name = self.path.removeprefix(f"/some/one/resolve/{COMMIT}/")
        if re.fullmatch(r"/api/models/some/one(/revision/(main|v1))?(\?.*)?", self.path):
          content, kind = json.dumps({"id": "some/one", "sha": COMMIT}).encode(), "application/json"
        elif name in files:
          content, kind = files[name], "application/octet-stream"
        else:
          self.send_response(404)
          self.send_header("X-Error-Code", "RepoNotFound")
          self.send_header("Content-Length", "0")
          return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
          self.wfile.write(content)
        return None

      def log_message(self, *_):
        pass

    self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.thread = threading.Thread(target=self.httpd.serve_forever)
    self.thread.start()
    self.url = f"http://127.0.0.1:{self.httpd.server_port}"

  def close(self):
    self.httpd.shutdown()
    self.thread.join()
    self.httpd.server_close()


@pytest.fixture
def hub(weights, monkeypatch):
  """Serve the Hub; its client reads the address once, when it is imported, and is told of it here."""
  from huggingface_hub import constants

  hub = Hub(files_of(weights))
  monkeypatch.setattr(constants, "ENDPOINT", hub.url)
  monkeypatch.setattr(
    constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
  )
  yield hub
  hub.close()


@pytest.mark.parametrize("given", ["hf:some/one", "hf:some/one@v1"])
def test_a_repository_is_pinned_to_its_commit_and_fetched_once(hub, given, weights, capsys):
  exact = f"hf:some/one@{COMMIT}"
  assert published.pinned(given) == exact
  assert capsys.readouterr().err == f"cm_jax: {given} is {exact}\n"
  folder = Path(published.folder_of(exact))
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == files_of(weights)
  before = len(hub.asked)
  model = load_model(exact)  # nobody is asked any more
  assert model.provenance["path"] == exact and len(hub.asked) == before
  assert capsys.readouterr().err == ""


def test_no_such_repository_is_one_line(hub):
  with pytest.raises(
    UserError, match="^model = hf:no/body: expected a repository with model.json and weights"
  ):
    load_model("hf:no/body")


def test_without_its_client_the_hub_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"^model = hf:some/one: expected .*pip install 'cm_jax\[hf\]'$"):
    load_model("hf:some/one")


@pytest.mark.slow
def test_an_unknown_name_lists_those_there_are(weights, monkeypatch, tmp_path, capsys):
  configs = tmp_path / "configs"
  (configs / "results" / "weights").mkdir(parents=True)
  (configs / "digits_edm.py").touch()
  for name in ("digits-cd", "digits-ect"):
    (configs / "results" / "weights" / name).symlink_to(weights)
  monkeypatch.setattr(published, "config_folders", lambda: [configs])
  monkeypatch.chdir(tmp_path)
  assert load_model("digits-cd").provenance["path"] == "digits-cd"
  listed = r"'digits-cd' \(did you mean it\?\) or one of: digits-cd, digits-ect"
  with pytest.raises(UserError, match=f"^model = digits-dc: expected a run folder .*; by name, {listed}$"):
    load_model("digits-dc")
  assert run(["search-steps", "--model=digits-cd", "--features=f"]) == 2
  assert "a folder of your own" in capsys.readouterr().err
  assert run(["evaluate", "--workdir=digits-cd", "--sigmas=80", "--features=digits"]) == 2
  assert "are a --model" in capsys.readouterr().err
  assert not Path("digits-cd").exists()
  Path("digits-cd").mkdir()  # a folder here comes before a name
  with pytest.raises(UserError, match="^model = digits-cd: expected a run folder"):
    load_model("digits-cd")


def test_a_download_that_breaks_off_while_it_is_looked_at_is_one_line():
  def answer(handler, start):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)

  with served(answer) as opener, pytest.raises(UserError, match="^download = https://host/x.zip: "):
    downloads.sha256_of("https://host/x.zip", opener=opener)
