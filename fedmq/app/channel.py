"""Messages between a process and its child: a few plain values, and tensors beside them.

    frame = number of the object's bytes (4 bytes, big-endian), a JSON object, a blob for each group of tensors

The object's "tensors" describes the groups by name. Each blob is packed as `schemas.tensors` says. The sender's arrays
go to the socket as they are, and the receiver reads them into the array that it keeps. Nothing is pickled. Files in
memory would save a copy, but the kernel clears their pages for each task, which costs more than the copy.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmq.schemas.errors import PeerError
from fedmq.schemas.limits import Limits
from fedmq.schemas.local.files import parse_json
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import pack, packed_bytes, read_entries, spec_of, unpack

LENGTH_BYTES = 4
MOST_FRAME_BYTES = 256 * 1024 * 1024
SOCKET_BYTES = 1024 * 1024
"""Bytes that may be on their way. The kernel grants less if its limit is lower."""
_ALIGNMENT_BYTES = 64
_LIMITS = Limits(max_tensors=2**31, max_rank=64)
"""The tensors are those of a task that the wire's own limits have let through."""

Groups = Mapping[str, Parameters]


class BrokenChannel(Exception):
    """The other end is gone, or it sent what is no frame."""


class Channel:
    """One end. Any thread may send, and one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        """Take over a connected stream socket."""
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._socket = end
        self._sending = threading.Lock()

    def send(self, values: Mapping[str, Any], groups: Groups | None = None) -> None:
        """Send plain JSON values and groups of tensors.

        Raises BrokenChannel, and AppError for tensors that cannot travel.
        """
        specs = {name: spec_of(tensors) for name, tensors in (groups or {}).items()}
        described = {name: [[t.name, t.dtype, t.shape, t.trainable] for t in spec] for name, spec in specs.items()}
        frame = json.dumps({**values, "tensors": described}).encode()
        blobs = [piece for tensors in (groups or {}).values() for piece in pack(tensors)]
        try:
            with self._sending:
                self._socket.sendall(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
                for piece in blobs:
                    self._socket.sendall(piece)
        except OSError as error:
            raise BrokenChannel(str(error)) from None

    def receive(self) -> tuple[dict[str, Any], dict[str, Parameters]] | None:
        """Wait for a frame; None if the other end has closed. The tensors are read-only. Raises BrokenChannel."""
        try:
            head = self._socket.recv(LENGTH_BYTES)
            if not head:
                return None
            num_bytes = int.from_bytes(head + self._read(LENGTH_BYTES - len(head)), "big")
            if num_bytes > MOST_FRAME_BYTES:
                raise BrokenChannel(f"a frame of {num_bytes} bytes")
            values = parse_json(self._read(num_bytes))
            groups = {name: self._group(entries) for name, entries in values.pop("tensors").items()}
        except (
            OSError,
            ValueError,
            TypeError,  # pydantic's ValidationError is a ValueError
            KeyError,
            AttributeError,
            MemoryError,
            PeerError,
        ) as error:
            raise BrokenChannel(f"{type(error).__name__}: {error}") from None
        return values, groups

    def close(self) -> None:
        """Let both ends know that nothing follows. A thread that receives gets None. Idempotent."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def release(self) -> None:
        """Give the descriptor back. No thread may use the channel any more."""
        self._socket.close()

    def _group(self, entries: Sequence[Any]) -> Parameters:
        plain = [{"name": n, "dtype": d, "shape": tuple(s), "trainable": t} for n, d, s, t in entries]
        spec = read_entries(plain, _LIMITS)
        return unpack(self._read(packed_bytes(spec)).toreadonly(), spec)

    def _read(self, num_bytes: int) -> memoryview:
        """Read so many bytes, to an aligned place. Raises BrokenChannel if there are fewer."""
        room = np.empty(num_bytes + _ALIGNMENT_BYTES, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT_BYTES
        found = room[start : start + num_bytes].data
        left = found
        while left:
            count = self._socket.recv_into(left)
            if not count:
                raise BrokenChannel("it ended inside a frame")
            left = left[count:]
        return found
