"""A cluster of private RabbitMQ nodes on this machine, any of which may be killed and started again."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.processes import PortMapper

SIZE = 3


@dataclass(frozen=True)
class Replicas:
    """The places of a quorum queue, by the names of nodes."""

    leader: str
    members: frozenset[str]
    online: frozenset[str]


class PrivateCluster:
    """Three nodes. Quorum queues that are declared after the start have a replica on each."""

    def __init__(self, folder: Path) -> None:
        self._mapper = PortMapper()
        names = [f"n{number}" for number in range(SIZE)]
        password, cookie = secrets.token_urlsafe(18), secrets.token_hex(10).upper()
        # The first node is up when the others start, so they find it and join it at their first boot.
        join = {
            "cluster_formation.peer_discovery_backend": "classic_config",
            "cluster_formation.classic_config.nodes.1": f"{names[0]}@localhost",
        }
        self.nodes = tuple(
            PrivateNode(folder / name, name=name, mapper=self._mapper, cookie=cookie, password=password, overrides=join)
            for name in names
        )

    @property
    def url(self) -> str:
        """URLs of all nodes, with commas between them."""
        return ",".join(node.url for node in self.nodes)

    def named(self, name: str) -> PrivateNode:
        (found,) = [node for node in self.nodes if node.name == name]
        return found

    def replicas(self, queue: str) -> Replicas:
        """Return the places of a quorum queue, as a running node sees them."""
        up = next(node for node in self.nodes if node.pid is not None)
        rows = json.loads(up.ctl("list_queues", "name", "leader", "members", "online", "--formatter", "json"))
        (row,) = [row for row in rows if row["name"] == queue]
        return Replicas(row["leader"], frozenset(row["members"]), frozenset(row["online"]))

    def __enter__(self) -> Self:
        try:
            self.nodes[0].start(timeout_s=120)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node: node.start(timeout_s=120), self.nodes[1:]))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()  # stop() would wait for each node
        self._mapper.stop()
