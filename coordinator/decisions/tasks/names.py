"""Task ids, and the proof that an id is one of this run's.

    <uid>-<seq>                                   plain: in studies, and in the run folders of an older fedmq
    <uid>-<seq>.<base_version>.<nonce><proof>     with a key

1. `uid` names the run, and a generation of it: it changes when the ledger turns out to be older than the run
   (coordinator.decisions.set_backs). Participants keep a method's memory under it.
2. Each start of a coordinator draws a nonce. So a coordinator on a folder that was restored or copied gives no id a
   second time, although it counts from an old `seq`.
3. `proof` is a keyed digest of all the rest and the participant, under a key of the run's that no message carries. An
   id with a proof that the ledger does not have was issued by a coordinator with a newer ledger, or with another copy.
   No participant can make one up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

NONCE_CHARS, PROOF_CHARS = 8, 12
_ID = re.compile(
    rf"([0-9A-Za-z]+)-([0-9]{{1,16}})(?:\.([0-9]{{1,16}})\.([0-9a-f]{{{NONCE_CHARS}}})([0-9a-f]{{{PROOF_CHARS}}}))?"
)


class TaskName(NamedTuple):
    """The parts of a task id. The last three are None in a plain one."""

    uid: str
    seq: int
    base_version: int | None
    nonce: str | None
    proof: str | None


def parsed(task_id: str | None) -> TaskName | None:
    """Return the parts of an id; None if it is no id of ours. Nothing is proved."""
    found = None if task_id is None else _ID.fullmatch(task_id)
    if found is None:
        return None
    uid, seq, version, nonce, proof = found.groups()
    return TaskName(uid, int(seq), None if version is None else int(version), nonce, proof)


@dataclass(frozen=True, slots=True)
class TaskNames:
    """The names of one generation's tasks. Without a nonce they are plain."""

    uid: str
    key: str = ""
    """Secret of the run, at least 16 characters, the same in all its coordinators."""
    nonce: str = ""
    """NONCE_CHARS hexadecimal digits, new with each start of a coordinator."""

    @classmethod
    def restore(cls, scalars: Mapping[str, Any], naming: TaskNames | None) -> TaskNames:
        """Return the names of a run that goes on, from what the core's snapshot stores of it.

        `naming` has this start's nonce, and a key for a run that has none yet.
        """
        stored = scalars.get("task_names", {})  # a ledger of an older fedmq does not have it
        return cls(
            stored.get("uid") or scalars["run_uid"],
            stored.get("key") or ("" if naming is None else naming.key),
            "" if naming is None else naming.nonce,
        )

    def scalars(self) -> dict[str, str]:
        """Return the JSON values that the checkpoint stores. The nonce is each start's own."""
        return {"uid": self.uid, "key": self.key}

    def name(self, seq: int, base_version: int, participant_id: str) -> str:
        """Return the id of a task."""
        if not self.nonce:
            return f"{self.uid}-{seq}"
        start = f"{self.uid}-{seq}.{base_version}.{self.nonce}"
        return start + self._proof(start, participant_id)

    def proved(self, task_id: str, participant_id: str) -> TaskName | None:
        """Return the parts of an id that a coordinator of this run gave to this participant; None if it is not shown
        to be one."""
        name = parsed(task_id)
        if name is None or name.proof is None or not self.key:
            return None
        expected = self._proof(task_id[:-PROOF_CHARS], participant_id)
        return name if hmac.compare_digest(name.proof, expected) else None

    def next_generation(self) -> TaskNames:
        """Return the names after a set-back: of another `uid`, which no other coordinator gives."""
        digest = hashlib.blake2b(f"{self.uid} {self.nonce}".encode(), digest_size=4)
        return replace(self, uid=digest.hexdigest())

    def _proof(self, start: str, participant_id: str) -> str:
        text = f"{start} {participant_id}".encode()
        return hashlib.blake2b(text, key=self.key.encode(), digest_size=PROOF_CHARS // 2).hexdigest()
