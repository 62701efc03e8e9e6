"""The [security] table of a federation file: how sure the coordinator and the participants are of who sent a message.

identity = "user"   A participant is the broker's user of its name, and the coordinator is the user `coordinator_user`.
                    The broker vouches for both, and a message from anybody else is refused.
identity = "open"   Whoever may publish is believed, with the little protection of decision 0026. It is meant for a
                    demo, or for one machine.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedmq.schemas.messages import Identifier

IdentityKind = Literal["user", "open"]


class SecuritySettings(BaseModel):
    """The rule by which senders are believed, and the coordinator's name on the broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: IdentityKind | None = None
    """None is "user" if the processes log in by certificates or if there is a fleet, else "open"."""
    coordinator_user: Identifier = "coordinator"
    """The coordinator's user on the broker. With identity "user", participants believe no other sender."""
    fleet: str | None = None
    """Folder of the fleet (`fedmq fleet init`). None takes the folder `fleet` beside the federation file if that is
    one."""

    def kind(self, auth: Literal["password", "external"], *, fleet: bool = False) -> IdentityKind:
        """Return the rule that holds. `auth` is that of the [broker] table, and `fleet` says that there is a fleet."""
        if self.identity is not None:
            return self.identity
        return "user" if fleet or auth == "external" else "open"
