"""A web server on this machine that stands for https://host."""

import contextlib
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def served(answer: Callable[[http.server.BaseHTTPRequestHandler, int], None]) -> Iterator[Callable]:
  """Serve GET requests by answer(handler, first byte asked for), and give the opener that turns
  https://host/... into them."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      answer(self, int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-")))

    def log_message(self, *_):
      pass

  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=httpd.serve_forever)
  thread.start()

  def opener(request, timeout):
    request.full_url = request.full_url.replace("https://host", f"http://127.0.0.1:{httpd.server_port}")
    return urllib.request.urlopen(request, timeout=timeout)

  try:
    yield opener
  finally:
    httpd.shutdown()
    thread.join()
    httpd.server_close()
