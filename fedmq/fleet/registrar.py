"""Decides on requests for certificates, from devices that join by a token and from those that renew.

Rules
1. The subject of a certificate is the token's id, or the broker's user that asks. The request's own subject and the
   message's participant_id count for nothing.
2. The same key gets the same certificate, however often it asks. A token is for the first key that asks in time.
3. A certificate is in the inventory, on disk, before it is told.
4. A device that has a young certificate gets no other one, so that it cannot fill the inventory.
5. If the authority's key is away, the request waits in the inventory until `fedmq fleet renew --ca-key` signs it. The
   device asks again meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedmq.broker_config.admin.admin import BrokerAdmin
from fedmq.broker_config.faults import fault
from fedmq.fleet import certificates
from fedmq.fleet.certificates import DAY_S, Credential
from fedmq.fleet.enrolment import JOIN_PREFIX, row_of, sweep
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.rows import Request
from fedmq.fleet.setup import device_lifetime_s
from fedmq.schemas.errors import PeerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

log = EventLog(__name__)

MOST_WAITING = 2
"""Requests of one device that may wait for the authority's key."""
YOUNG = 0.25
"""Part of a certificate's lifetime during which its device gets no other one."""
KEPT_S = 30 * DAY_S
"""Time for which the inventory keeps a certificate that has ended."""


class Registrar:
    """The registrar of one fleet. One thread at a time may call it."""

    def __init__(
        self,
        folder: FleetFolder,
        inventory: Inventory,
        *,
        wall_s: Callable[[], float],
        admin: BrokerAdmin | None = None,
    ) -> None:
        """`admin` deletes the temporary users of tokens that are over. Without it the next `fedmq fleet` command
        does."""
        self._folder = folder
        self._inventory = inventory
        self._wall_s = wall_s
        self._admin = admin

    def on_request(self, message: CertificateRequest, user: str | None) -> Certificate | None:
        """Return the answer to a request; None if nobody can be answered. Raises FleetError."""
        if user is None:
            log.warning("certificate_request_dropped", participant=message.participant_id, reason="unknown_sender")
            return None
        key_id = None
        try:
            key_id = certificates.key_id_of_request(message.request)
            answer = self._decided(message, user, key_id)
        except (_Refused, PeerError) as refused:
            answer = _answer(message.participant_id, "refused", detail=str(refused))
        answer = answer.model_copy(update={"key_id": key_id})
        log.info(f"certificate_{answer.verdict}", participant=answer.participant_id, user=user, detail=answer.detail)
        return answer

    def on_installed(self, message: CertificateInstalled, user: str | None) -> None:
        """Note that a device has a certificate on disk. Raises FleetError."""
        token = None if user is None else self._inventory.token(user)
        device_id = user if token is None else token.device_id
        if device_id is None or (token is not None and token.key_id != message.key_id):
            return
        self._inventory.installed(device_id, message.key_id, self._wall_s())
        log.info("certificate_installed", participant=device_id, user=user)
        self.tidy()

    def tidy(self) -> None:
        """End the tokens that are over, and forget old certificates. Raises FleetError."""
        now = self._wall_s()
        self._inventory.forget_certificates(now - KEPT_S)
        if self._admin is not None:
            sweep(self._inventory, self._admin, now)

    def _decided(self, message: CertificateRequest, user: str, key_id: str) -> Certificate:
        joins = user.startswith(JOIN_PREFIX)
        device_id = self._joining(user, key_id) if joins else user
        standing = self._inventory.standing(device_id)
        if standing != "enrolled":
            raise _Refused(f"{device_id} is {'revoked' if standing == 'revoked' else 'no device of this fleet'}")
        known = self._inventory.certificate_of_key(key_id)
        if known is not None:
            if known.device_id != device_id:
                raise _Refused("this key belongs to another device: make a new one")
            return _answer(device_id, "issued", certificate=known.certificate)
        if not joins:
            self._not_young(device_id)
        if not self._folder.ca_key.is_file():
            return self._waiting(Request(key_id, device_id, message.request, self._wall_s()))
        certificate = sign(self._folder.authority(), self._inventory, device_id, message.request, self._wall_s())
        return _answer(device_id, "issued", certificate=certificate)

    def _joining(self, user: str, key_id: str) -> str:
        token = self._inventory.bind_token(user, key_id, self._wall_s())
        if token is None or token.state == "closed":
            raise _Refused("this token is not valid any more: ask for another one")
        if token.key_id is None:
            over = self._wall_s() >= token.expires_s
            raise _Refused("this token has expired: ask for another one" if over else "this token is not ready yet")
        if token.key_id != key_id:
            raise _Refused(
                "this token has been used by another key: a token lets one device in, once. If it was not yours, tell "
                "whoever gave you the token"
            )
        return token.device_id

    def _not_young(self, device_id: str) -> None:
        rows = self._inventory.certificates(device_id)
        if rows and self._wall_s() < certificates.facts(rows[-1].certificate).passed(YOUNG):
            raise _Refused("the newest certificate of this device is young still: use it, or ask again later")

    def _waiting(self, request: Request) -> Certificate:
        if not self._inventory.add_request(request, MOST_WAITING):
            raise _Refused("other requests of this device wait for the authority's key already")
        return _answer(
            request.device_id, "waiting", detail="the authority's key is elsewhere, and a person has to sign"
        )


def sign(authority: Credential, inventory: Inventory, device_id: str, request: str, now_s: float) -> str:
    """Sign a request, note the certificate and return it. Raises PeerError for a request that is none, and
    FleetError."""
    signed = certificates.signed_request(authority, request, device_id, now_s, device_lifetime_s(inventory))
    noted = inventory.add_certificate(row_of(device_id, signed))
    fault("fleet-signed")
    return noted.certificate


def sign_waiting(folder: FleetFolder, inventory: Inventory, now_s: float, ca_key: Path | None = None) -> list[str]:
    """Sign all requests that wait for the authority's key. Return a sentence on each. Raises FleetError."""
    told = []
    for one in inventory.requests():
        if inventory.certificate_of_key(one.key_id) is None and inventory.standing(one.device_id) == "enrolled":
            sign(folder.authority(ca_key), inventory, one.device_id, one.request, now_s)
            told.append(f"the certificate of {one.device_id}: it fetches it by itself")
    return told


class _Refused(Exception):
    """A request that is answered with a refusal."""


def _answer(device_id: str, verdict: str, certificate: str | None = None, detail: str = "") -> Certificate:
    return Certificate.model_validate(
        {"participant_id": device_id, "verdict": verdict, "certificate": certificate, "detail": detail[:4000]}
    )
