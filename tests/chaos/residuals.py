"""The books of error feedback, which must balance for each participant whatever breaks:

    sum of what was accepted + residual on the participant's disk = sum of what its accepted trainings made

What was accepted is read from the run's archive. The trainings are made again from their tasks' seeds (app.py).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.state.ledger.reader import open_if_made
from fedmq.coordinator.state.ledger.rows import UpdateRow
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codecs.checked import RESIDUAL
from fedmq.schemas.messages import run_uid
from tests.chaos.harness import DEADLINE_S, Federation
from tests.support.asking import ask_until

Sum = npt.NDArray[np.float64]


def accepted(federation: Federation, name: str) -> list[UpdateRow]:
    """Return the ledger's rows of a participant; none if there is no ledger yet."""
    reader = open_if_made(federation.run_dir / "ledger.sqlite")
    if reader is None:
        return []
    with reader as ledger:
        return [row for row in ledger.updates() if row.participant_id == name]


def wait_for(federation: Federation, name: str, more: int) -> None:
    """Wait until so many more updates of a participant are accepted."""
    before = len(accepted(federation, name))
    what = f"{more} more updates of {name}"
    ask_until(lambda: len(accepted(federation, name)) >= before + more, within_s=DEADLINE_S, what=what)


def sent(federation: Federation, rows: Collection[UpdateRow]) -> dict[str, Sum]:
    """Return what was counted of each of these updates, by its task."""
    return {row.task_id: federation.archived(row)["w"].astype(np.float64).reshape(-1) for row in rows}


def made(task_id: str, size: int) -> Sum:
    """Return what the training of a task added to the model."""
    name = parsed(task_id)
    assert name is not None
    return np.random.default_rng(task_seed(0, name.seq)).normal(size=size).astype(np.float32).astype(np.float64)


def residual(federation: Federation, name: str) -> Sum:
    """Return e of a participant that is dead. No verdict may be open: a participant in training has them all."""
    spool = Spool(federation.folder / "spool", name)
    try:
        assert spool.unsettled() == {}
        memory = spool.read_memory(run_uid(accepted(federation, name)[-1].task_id))
    finally:
        spool.close()
    assert memory is not None
    assert memory.soft
    return memory.tensors[RESIDUAL].astype(np.float64)


def check(federation: Federation, name: str, counted: dict[str, Sum], left: Sum | None = None) -> None:
    """Check the books of a participant that is dead, over these updates. The residual is no trifle."""
    left = residual(federation, name) if left is None else left
    total = np.sum(list(counted.values()), axis=0)
    trainings = [made(task_id, left.size) for task_id in counted]
    wanted = np.sum(trainings, axis=0)
    assert np.linalg.norm(left) > 0.05 * np.linalg.norm(trainings[-1])
    assert np.linalg.norm(total + left - wanted) <= 1e-5 * np.linalg.norm(wanted)
