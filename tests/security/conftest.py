"""A site for tests that act with exactly the rights of their role: `site` is made once for a module.

A test of this folder takes `site`, and acts as a device by `site.raw(ID)`, a plain pika channel.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from fedmq.broker_config.node.node import PrivateNode
from tests.security.site import Site


@pytest.fixture(scope="module")
def site(rabbitmq_node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A virtual host of the session's node, with a user for the coordinators and for each of `site.DEVICES`."""
    one = Site(rabbitmq_node, f"v{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp("site"))
    yield one
    one.close()
