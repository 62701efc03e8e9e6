import pytest

from fedmq.broker_config.security import SecuritySettings


@pytest.mark.parametrize(
    ("identity", "auth", "fleet", "kind"),
    [
        (None, "password", False, "open"),
        (None, "external", False, "user"),
        (None, "password", True, "user"),
        ("user", "password", False, "user"),
        ("open", "external", True, "open"),
    ],
)
def test_identity_is_by_user_where_certificates_or_a_fleet_vouch_for_it(identity, auth, fleet, kind):
    assert SecuritySettings(identity=identity).kind(auth, fleet=fleet) == kind


def test_the_coordinators_user_has_a_default_name():
    assert SecuritySettings().coordinator_user == "coordinator"
