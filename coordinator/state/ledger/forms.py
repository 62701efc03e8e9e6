"""The forms in which a run's updates and models travel, as the ledger's settings have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedmq.coordinator.settings import DownlinkSettings
from fedmq.schemas.errors import LedgerError, shown
from fedmq.schemas.messages import Uplink

Table = TypeVar("Table", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Forms:
    """The [uplink] and [downlink] tables of a run."""

    uplink: Uplink | None = None
    """Codec that updates are asked for in since the coordinator's last start; None: they are plain."""
    downlink: DownlinkSettings = field(default_factory=DownlinkSettings)
    """Form of the model in tasks, the same for the run's whole life."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Forms:
        """Read them from a ledger's settings; those of an older fedmq are plain. Raises LedgerError."""
        uplink, downlink = settings.get("uplink"), settings.get("downlink")
        return cls(
            None if uplink is None else _read(Uplink, "uplink", uplink),
            DownlinkSettings() if downlink is None else _read(DownlinkSettings, "downlink", downlink),
        )

    def to_json(self) -> dict[str, Any]:
        """Return both tables as JSON values; that of plain updates is None."""
        uplink = None if self.uplink is None else self.uplink.model_dump(mode="json")
        return {"uplink": uplink, "downlink": self.downlink.model_dump(mode="json")}


PLAIN = Forms()


def _read(table: type[Table], name: str, written: Any) -> Table:
    try:
        return table.model_validate(written)
    except ValidationError:
        raise LedgerError(
            f"the ledger's settings have the {name} {shown(written)}, which this fedmq does not write: read the run "
            "with the fedmq that made it, or restore the folder from a backup"
        ) from None
