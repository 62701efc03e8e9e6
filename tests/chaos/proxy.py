"""A TCP proxy between one process and the broker. It breaks the connections of that process, and no others, at will.

It runs on asyncio in a thread of its own. Every method may be called from any thread, and its effect is there when it
returns. Directions are seen from the broker: "up" is towards it, "down" is away from it. `cuts`, `swallowed` and
`carried` count what each fault did, so that a test can first prove that the fault happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Direction = Literal["up", "down"]
BOTH: tuple[Direction, ...] = ("up", "down")
PIECE_BYTES = 64 * 1024
WAITING_PIECES = 64
"""Most pieces on their way in one direction of one connection. More wait in the sender's own socket."""
CLOSE_S = 10.0
T = TypeVar("T")


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    mute: set[Direction] = field(default_factory=set)
    """Directions in which bytes were swallowed. Nothing may pass there any more, or the stream would have a hole."""
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def ends(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        return (self.client, self.server) if direction == "up" else (self.server, self.client)


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to the broker's port."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream = ("127.0.0.1", upstream_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0
        """Number of connections that were ended at a byte count or by chance."""
        self.swallowed: dict[Direction, int] = {"up": 0, "down": 0}
        """Number of bytes that were accepted and went nowhere."""
        self.on_up: Callable[[object, bytes], None] = lambda _connection, _data: None
        """Called on the proxy's thread with the bytes that go to the broker, and with their connection."""
        self.carried: dict[Direction, int] = {"up": 0, "down": 0}
        self._up = True
        self._black: set[Direction] = set()
        self._cut_at: dict[Direction, int] = {}
        self._cuts_left = 0
        self._chance = 0.0
        self._rng = random.Random(0)
        self._delay_s = 0.0
        self._bytes_per_s: dict[Direction, float] = {}
        self._takes_all = False
        self._connections: dict[_Connection, None] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # Faults

    def sever(self, oldest: int | None = None) -> int:
        """Cut the open connections, or only the `oldest` ones; return the number of connections cut."""
        return self._do(lambda: self._sever(oldest))

    def set_up(self, up: bool) -> None:
        """Turn the proxy on or off. If it is off, open connections are cut, and new ones as soon as they come."""

        def change() -> None:
            self._up = up
            if not up:
                self._sever()

        self._do(change)

    def blackhole(self, *directions: Direction, new: bool = True) -> int:
        """Swallow all bytes from now on, as if the peer had vanished without a goodbye.

        Neither end hears that the other one closed. With `new` the same goes for connections that come later, until
        `heal`. Returns the number of open connections.
        """

        def change() -> int:
            for connection in self._connections:
                connection.mute.update(directions or BOTH)
            if new:
                self._black.update(directions or BOTH)
            return len(self._connections)

        return self._do(change)

    def heal(self) -> None:
        """Let new connections work without faults. Connections that lost bytes stay as they are."""

        def change() -> None:
            self._up, self._chance, self._delay_s, self._cuts_left = True, 0.0, 0.0, 0
            self._black.clear()
            self._bytes_per_s.clear()

        self._do(change)

    def cut_at(self, at_bytes: int, times: int, direction: Direction = "up") -> None:
        """End the next `times` connections at exactly this byte count in this direction."""

        def change() -> None:
            self._cut_at, self._cuts_left = {direction: at_bytes}, times

        self._do(change)

    @property
    def cuts_left(self) -> int:
        return self._do(lambda: self._cuts_left)

    def cut_by_chance(self, probability: float, seed: int) -> None:
        """Let each incoming piece end its connection with this probability, somewhere within the piece."""

        def change() -> None:
            self._chance, self._rng = probability, random.Random(seed)

        self._do(change)

    def delay(self, each_way_s: float) -> None:
        """Delay everything by `each_way_s`, at the same rate."""

        def change() -> None:
            self._delay_s = each_way_s

        self._do(change)

    def throttle(self, bytes_per_s: float, *directions: Direction, takes_all: bool = False) -> None:
        """Limit the rate of each connection in each of these directions.

        Connections that come later also have small buffers, so that their senders notice. With `takes_all` a sender
        notices nothing for the first megabytes, as with a proxy in front of a slow link.
        """

        def change() -> None:
            self._takes_all = takes_all
            self._bytes_per_s.update(dict.fromkeys(directions or BOTH, bytes_per_s))
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)

        self._do(change)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._do(self._loop.stop)
            self._thread.join(CLOSE_S)

    # The loop's own

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        accepting.cancel()
        while left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left))
        self._listener.close()
        self._loop.close()

    def _do(self, action: Callable[[], T]) -> T:
        if self._loop.is_closed():
            return action()

        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CLOSE_S)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            server = socket.socket()
            server.setblocking(False)
            try:
                if not self._up:
                    raise ConnectionError
                if self._bytes_per_s:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
                await self._loop.sock_connect(server, self._upstream)
            except OSError:
                _end(client, server)
                continue
            except asyncio.CancelledError:
                _end(client, server)
                raise
            connection = _Connection(client, server, set(self._black))
            self._connections[connection] = None
            for direction in BOTH:
                task = self._loop.create_task(self._carry(connection, direction))
                task.add_done_callback(lambda _, connection=connection: self._over(connection))
                connection.tasks.append(task)

    def _over(self, connection: _Connection) -> None:
        """End the other direction after one has ended, then close the sockets."""
        self._connections.pop(connection, None)
        if all(task.done() for task in connection.tasks):
            _end(connection.client, connection.server)
        for task in connection.tasks:
            task.cancel()

    def _sever(self, oldest: int | None = None) -> int:
        found = list(self._connections)[:oldest]
        for connection in found:
            del self._connections[connection]
            _shut(connection.client, connection.server)
            for task in connection.tasks:
                task.cancel()
        return len(found)

    async def _carry(self, connection: _Connection, direction: Direction) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_PIECES)
        receiving = self._loop.create_task(self._receive(connection, direction, queue))
        try:
            await self._send(connection, direction, queue)
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])

    async def _receive(
        self, connection: _Connection, direction: Direction, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Put what the source sends into the queue. An empty piece marks the end."""
        source, _ = connection.ends(direction)
        data = b"some"
        while data:
            rate = None if self._takes_all else self._bytes_per_s.get(direction)
            most = PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, int(rate / 20)))
            data = b""
            with contextlib.suppress(OSError):
                data = await self._loop.sock_recv(source, most)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)
            await queue.put((self._loop.time() + self._delay_s, data))

    async def _send(
        self, connection: _Connection, direction: Direction, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        _, target = connection.ends(direction)
        while True:
            due, data = await queue.get()
            if (wait_s := due - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if direction in connection.mute:
                if not data:
                    await asyncio.Event().wait()  # its goodbye goes nowhere either
                self.swallowed[direction] += len(data)
                continue
            kept = self._kept(connection, direction, data)
            if self._takes_all and direction in self._bytes_per_s:
                await asyncio.sleep(kept / self._bytes_per_s[direction])
            with contextlib.suppress(OSError):
                await self._loop.sock_sendall(target, data[:kept])
                self.carried[direction] += kept
                if direction == "up":
                    self.on_up(connection, data[:kept])
                if data and kept == len(data):
                    continue
            return

    def _kept(self, connection: _Connection, direction: Direction, data: bytes) -> int:
        """Return how many bytes of this piece go through: all of them, unless its connection is cut here."""
        before = connection.passed[direction]
        connection.passed[direction] += len(data)
        cut_at = self._cut_at.get(direction)
        if self._cuts_left and cut_at is not None and before + len(data) > cut_at:
            self._cuts_left -= 1
            self.cuts += 1
            return max(0, cut_at - before)
        if data and self._chance and self._rng.random() < self._chance:
            self.cuts += 1
            return self._rng.randrange(len(data))
        return len(data)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _end(*sockets: socket.socket) -> None:
    _shut(*sockets)
    for one in sockets:
        one.close()
