"""Scalars for TensorBoard, in its own format: no thread that could die of a full disk and be waited for."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from cm_jax.storage import whole

UPLOADED_EVERY = 120.0  # seconds: elsewhere than on a local disk a file is written anew as a whole


class Board:
  """The event file of a run.

  Args:
    folder: Where it goes; made by the first scalars.
  """

  def __init__(self, folder: epath.Path):
    # Names as TensorBoard's own, one for each process that goes on with a run.
    self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    self._content = b""  # of a file that is not local
    self._uploaded = 0.0
    self._begun = False

  def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
    """Write the scalars of a step, without those that are None.

    Raises:
      OSError, UserError: The place cannot be written, or the disk is full.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    now = time.time()
    events = [
      Event(wall_time=now, step=step, summary=scalar(name, number))
      for name, number in scalars.items()
      if number is not None
    ]
    if not self._begun:
      start = SessionLog(status=SessionLog.START)  # TensorBoard forgets what it had from this step on
      first = Event(wall_time=now, file_version="brain.Event:2")
      events = [first, Event(wall_time=now, step=step, session_log=start), *events]
    content = b"".join(map(_record, events))
    if not whole.is_local(self._path):
      self._content += content
      if now - self._uploaded > UPLOADED_EVERY:
        self.close()
        self._uploaded = now
    else:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "ab", buffering=0) as file:
        if file.write(content) != len(content):
          raise OSError("the disk is full")
    self._begun = True

  def close(self) -> None:
    """Write what is not on the disk yet.

    Raises:
      UserError: The place cannot be written.
    """
    if self._content:
      whole.write(self._path, self._content)


def _record(event: Any) -> bytes:
  """Return an event as TensorFlow's TFRecord: length, content, and a checksum of each."""
  content = event.SerializeToString()
  length = struct.pack("<Q", len(content))
  return length + _checksum(length) + content + _checksum(content)


def _checksum(data: bytes) -> bytes:
  from tensorboardX.crc32c import crc32c

  plain = crc32c(data)
  return struct.pack("<I", ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF)
