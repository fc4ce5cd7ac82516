"""Downloads: what was asked for or nothing, over https, into a cache that nobody else can write."""

import hashlib
import urllib.error
import urllib.request

import pytest

from cm_jax.errors import UserError
from cm_jax.storage import downloads
from tests.serving import served
from tests.storage.places import disk_of

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A local web server; the opener given to `download` turns https://host/... into it."""
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  requests = []

  def answer(handler, start):
    requests.append((handler.path, start))
    if handler.path == "/absent":
      return handler.send_error(404)
    if start >= len(CONTENT):
      return handler.send_error(416)
    whole = handler.path == "/norange"
    body = CONTENT if whole else CONTENT[start:]
    handler.send_response(206 if start and not whole else 200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    return handler.wfile.write(
      body[:300_000] if handler.path == "/broken" else body if handler.path != "/other" else body[::-1]
    )

  with served(answer) as opener:
    yield opener, requests


def test_download_then_cache(server, tmp_path):
  opener, requests = server
  seen = []
  path = downloads.download(
    "https://host/dir/net.pkl", SHA256, opener=opener, progress=lambda done, total: seen.append((done, total))
  )
  assert path.read_bytes() == CONTENT
  assert path.name.endswith("-net.pkl")
  assert seen[-1] == (len(CONTENT), len(CONTENT))
  assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
  assert downloads.download("https://host/dir/net.pkl", SHA256, opener=opener) == path
  assert len(requests) == 1
  path.write_bytes(b"tampered")
  assert downloads.download("https://host/dir/net.pkl", SHA256, opener=opener).read_bytes() == CONTENT


def test_download_resumes_and_falls_back(server):
  opener, requests = server
  path = downloads.download(
    ["https://host/absent", "https://host/broken", "https://host/net"], SHA256, opener=opener
  )
  assert path.read_bytes() == CONTENT
  assert requests[-3:] == [("/broken", 0), ("/broken", 300_000), ("/net", 600_000)]


def test_a_server_without_ranges_starts_again(server):
  opener, requests = server
  assert (
    downloads.download(["https://host/broken", "https://host/norange"], SHA256, opener=opener).read_bytes()
    == CONTENT
  )
  assert requests[-1] == ("/norange", 600_000)


def test_wrong_content_is_never_kept(server, tmp_path):
  opener, _ = server
  with pytest.raises(UserError, match=f"sha256 {SHA256}"):
    downloads.download("https://host/other", SHA256, opener=opener)
  assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]
  with pytest.raises(UserError, match="longer than 1000 bytes"):
    downloads.download("https://host/net", SHA256, opener=opener, max_bytes=1000)


def test_a_full_disk_is_named_and_the_transfer_resumes(server, tmp_path):
  opener, requests = server
  with disk_of(1 << 20), pytest.raises(UserError, match="File too large"):
    downloads.download("https://host/net", SHA256, opener=opener)
  assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock", ".part"}
  assert downloads.download("https://host/net", SHA256, opener=opener).read_bytes() == CONTENT
  assert requests[-1] == ("/net", 1 << 20)


def test_offline_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))

  def offline(*_, **__):
    raise urllib.error.URLError("Name or service not known")

  with pytest.raises(UserError) as error:
    downloads.download("https://example.org/net.pkl", SHA256, opener=offline)
  message = str(error.value)
  assert (
    "https://example.org/net.pkl" in message
    and SHA256 in message
    and str(tmp_path / "cache") in message
    and "\n" not in message
  )


def test_only_https_and_only_a_private_cache(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="https"):
    downloads.download("http://example.org/net.pkl", SHA256)
  with pytest.raises(UserError, match="64 hex"):
    downloads.download("https://example.org/net.pkl", "abc")
  shared = tmp_path / "shared"
  shared.mkdir()
  shared.chmod(0o777)
  monkeypatch.setenv("CM_JAX_CACHE", str(shared))
  with pytest.raises(UserError, match="chmod 700"):
    downloads.download("https://example.org/net.pkl", SHA256)


def test_a_redirect_off_https_is_refused():
  request = urllib.request.Request("https://example.org/a")
  handler = next(h for h in downloads._https_only().handlers if type(h).__name__ == "Redirect")
  with pytest.raises(urllib.error.URLError, match="not https"):
    handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/b")
