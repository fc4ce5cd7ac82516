"""An S3 of this machine (moto's server, a process of its own): which may be away for a while."""

import atexit
import contextlib
import functools
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request

CREDENTIALS = {
  "AWS_ACCESS_KEY_ID": "key",
  "AWS_SECRET_ACCESS_KEY": "secret",
  "AWS_DEFAULT_REGION": "us-east-1",
}


class Server:
  """moto's server behind a gate of this process: the store is away while that is shut, and loses nothing.

  Attributes:
    address: For AWS_ENDPOINT_URL.
    is_open: Whether it answers.
  """

  def __init__(self):
    self._behind = _free_port()
    self.is_open = True
    self._gate = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._pass, bind_and_activate=True)
    self._gate.daemon_threads = True
    self.address = f"http://127.0.0.1:{self._gate.server_address[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._behind)]
    self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    threading.Thread(target=self._gate.serve_forever, daemon=True).start()

  def _pass(self, client: socket.socket, *_) -> None:
    """Carry bytes both ways until one side ends."""
    if not self.is_open:
      return
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._behind)) as server:
      ends = {client: server, server: client}
      while self.is_open:
        for end in select.select(list(ends), [], [], 0.2)[0]:
          if not (content := end.recv(1 << 16)):
            return
          ends[end].sendall(content)

  def ready(self) -> None:
    """Wait until it answers."""
    for _ in range(300):
      with contextlib.suppress(OSError):
        urllib.request.urlopen(self.address, timeout=5).close()
        return
      time.sleep(0.1)
    raise AssertionError("moto's server did not start")

  def make(self, bucket: str) -> None:
    """Make a bucket."""
    urllib.request.urlopen(
      urllib.request.Request(f"{self.address}/{bucket}", method="PUT"), timeout=5
    ).close()

  def stop(self) -> None:
    """Stop it."""
    self._gate.shutdown()
    self._gate.server_close()
    self._process.kill()
    self._process.wait()


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@functools.cache
def server() -> Server:
  """Return the one server of this process, which its environment names from now on: s3fs keeps to the address
  that it saw first."""
  started = Server()
  atexit.register(started.stop)
  os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=started.address)
  started.ready()
  return started
