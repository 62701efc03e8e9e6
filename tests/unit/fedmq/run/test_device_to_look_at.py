"""The doctor's look at a device: nothing is written beside its bundle, and a token is not used up."""

import os
from pathlib import Path

import pytest

from fedmq.fleet import bundle
from fedmq.fleet.bundle import TokenFile
from fedmq.fleet.joining import bundle_path
from fedmq.run.devices import device_to_look_at
from fedmq.schemas.errors import ConfigError
from tests.unit.fedmq.fleet.test_device import bundle_of


def test_a_bundle_is_looked_at_with_tls_files_elsewhere_that_go_away(tmp_path):
    path = tmp_path / "sensor-1.bundle"
    bundle.write(path, bundle_of())
    with device_to_look_at(path, None, None, ()) as (name, device):
        assert (name, device.broker.auth, device.security.kind("external")) == ("sensor-1", "external", "user")
        cert = Path(device.broker.cert_file)
        assert cert.stat().st_mode & 0o077 == 0
        assert os.listdir(tmp_path) == ["sensor-1.bundle"]
    assert not cert.exists()
    assert os.listdir(tmp_path) == ["sensor-1.bundle"]


def test_a_token_is_not_used_and_the_bundle_that_it_became_is_taken(tmp_path):
    path, whole = tmp_path / "sensor-1.token", bundle_of()
    shared = {key: getattr(whole, key) for key in TokenFile.model_fields if key in type(whole).model_fields}
    token = TokenFile(**{**shared, "fedmq": "token 1", "user": "join-1", "password": "x" * 32, "expires_s": 1.0})
    bundle.write(path, token)
    with pytest.raises(ConfigError, match=r"is a token, and this device has not joined with it yet"):
        device_to_look_at(path, None, None, ()).__enter__()
    bundle.write(bundle_path(path), whole)
    with device_to_look_at(path, None, None, ()) as (name, _device):
        assert name == "sensor-1"
