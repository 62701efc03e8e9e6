"""The coordinator's end of fedmq.app.model_worker: initial parameters, central evaluation and the exported model.

TensorFlow and PyTorch are never imported into the coordinator's own process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.app.children import end_session, importable, kill_session, python, without_settings
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.app.threads import tensorflow_environment
from fedmq.coordinator.decisions.events import SUPERSEDED, EvaluationArrived
from fedmq.schemas.errors import AppError, MissingExtra
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import make_folder, open_log, tail
from fedmq.schemas.messages import Reply, Task, Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.redaction import redacted
from fedmq.schemas.tensors import DTYPES

log = EventLog(__name__)

CLOSE_S = 5.0
BUSY_CLOSE_S = 0.2
"""Time to leave for a child that is at work: it looks at its input only when it has answered."""
LOG_TAIL_BYTES = 8192
OnResult = Callable[[EvaluationArrived], None]


@dataclass(slots=True)
class _Evaluation:
    version: int
    parameters: Parameters
    on_result: OnResult


class ModelChild:
    """Starts the worker process and sends it one request at a time.

    `submit` never blocks. If evaluations take longer than versions, only the newest version waits.
    """

    def __init__(self, app: Path, work_dir: Path) -> None:
        """Start to load the app; `ready` waits for it. The child's own output goes to work_dir/model.log."""
        make_folder(work_dir)
        self._app = app
        self._work_dir = work_dir
        self._log_path = work_dir / "model.log"
        self._asking = threading.Lock()
        self._wake = threading.Condition()
        self._waiting: _Evaluation | None = None
        self._closed = False
        self._ready: dict[str, Any] | None = None
        self._busy = True
        """True while the child owes an answer."""
        self._process = self._start()
        self._thread = threading.Thread(target=self._evaluate_forever, name="evaluator", daemon=True)

    def ready(self) -> None:
        """Wait until the app is loaded. Raises AppError or MissingExtra if it cannot be."""
        with self._asking:
            self._load()

    @property
    def evaluates(self) -> bool:
        """True if the app has test data, or an `evaluate` of its own."""
        return bool(self._ready and self._ready.get("evaluates"))

    @property
    def exports(self) -> bool:
        """True if the app's model can be exported as a file of its framework."""
        return bool(self._ready and self._ready.get("exports"))

    @property
    def distils(self) -> bool:
        """True if the app has a `distil` of its own."""
        return bool(self._ready and self._ready.get("distils"))

    def initial(self) -> Parameters:
        """Return the first version of the model. Raises AppError."""
        # A standby may begin the same run at this moment.
        path = self._work_dir / f"initial-{self._process.pid}.safetensors"
        try:
            self._ask({"initial": str(path)})
            return read_parameters(path)
        finally:
            path.unlink(missing_ok=True)

    def outline(self) -> Parameters:
        """Return the names, dtypes and shapes of the first version, with zeros that take no memory. Raises AppError."""
        tensors = self._ask({"outline": True})["outline"]
        zeros = {name: np.broadcast_to(np.zeros((), DTYPES[dtype]), shape) for name, dtype, shape, _ in tensors}
        return Parameters(zeros, frozenset(name for name, _, _, trainable in tensors if not trainable))

    def frozen(self) -> dict[str, bool]:
        """Return the first version's tensors that no update moves, each with True if an optimizer would step it once it
        is not frozen any more. Raises AppError."""
        return dict(self._ask({"frozen": True})["frozen"])

    def export(self, model: Path) -> Path:
        """Write the .keras or .pt file beside a .safetensors one, and return its path. Raises AppError."""
        return Path(self._ask({"export": str(model), "to": str(model.with_suffix(""))})["written"])

    def evaluate(self, parameters: Parameters, version: int = 0) -> dict[str, float]:
        """Return the metrics of these parameters. It blocks; `submit` does not. Raises AppError."""
        path = self._work_dir / "evaluate.safetensors"
        write_parameters(path, parameters)
        answer = self._ask({"evaluate": str(path), "version": version})
        return {str(name): float(value) for name, value in answer["metrics"].items()}

    def hello(self, participant_id: str) -> tuple[int | None, tuple[Reply, ...]]:
        """Return what a participant of this app says in its hello: its number of examples (None if it does not know
        yet), and the replies that its trainer can give. Raises AppError."""
        answer = self._ask({"hello": participant_id})
        return answer["num_examples"], tuple(answer["replies"])

    def train(self, task: Task, tensors: Parameters) -> tuple[Update, Parameters]:
        """Do a task as its participant does it, and return the update and its payload. Raises AppError."""
        given, made = self._work_dir / "task.safetensors", self._work_dir / "update.safetensors"
        write_parameters(given, tensors)
        answer = self._ask({"train": task.model_dump(mode="json"), "from": str(given), "to": str(made)})
        return Update.model_validate(answer["update"]), read_parameters(made)

    def distil(self, order: dict[str, Any]) -> None:
        """Have a version distilled (fedmq.app.model_distiller). It blocks. Raises AppError."""
        self._ask(order)

    def submit(self, version: int, parameters: Parameters, on_result: OnResult) -> None:
        """Have these parameters evaluated soon. `on_result` is called on the evaluator's thread."""
        with self._wake:
            superseded, self._waiting = self._waiting, _Evaluation(version, parameters, on_result)
            if self._thread.ident is None:
                self._thread.start()
            self._wake.notify()
        if superseded is not None:
            superseded.on_result(EvaluationArrived(superseded.version, detail=f"{SUPERSEDED} by version {version}"))

    def close(self) -> None:
        """Stop the child, and give up an evaluation that is under way. Idempotent."""
        with self._wake:
            self._closed = True
            self._waiting = None
            self._wake.notify()
        self._end(BUSY_CLOSE_S if self._busy else CLOSE_S)

    def kill(self) -> None:
        """End the child at once, with all that it has started. The next question starts another one."""
        kill_session(self._process)

    def _end(self, grace_s: float) -> None:
        """Close the child's input, which tells it to leave; kill it after the grace, with all that the app started."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        end_session(self._process, grace_s)

    def _start(self) -> subprocess.Popen[str]:
        with open_log(self._log_path) as log_file:
            return subprocess.Popen(  # noqa: S603 (this interpreter, our own module)
                python("fedmq.app.model_worker", str(self._app)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                env=importable(without_settings(tensorflow_environment())),
                start_new_session=True,  # the coordinator handles a Ctrl-C: it still needs the export
            )

    def _load(self) -> None:
        if self._ready is not None and self._process.poll() is None:
            return
        if self._ready is not None:
            log.warning("model_process_ended", status=self._process.returncode, next="starting another")
            self._end(0.0)
            self._process = self._start()
        self._ready = self._answer()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._asking:
            self._load()
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except OSError:
                raise self._ended() from None
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        self._busy = True
        line = self._process.stdout.readline()
        self._busy = False
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer.get("disk"):
                raise OSError(answer["disk"], answer["error"], str(self._work_dir))
            raise (MissingExtra if answer.get("missing_extra") else AppError)(answer["error"])
        return answer

    def _ended(self) -> AppError:
        status = self._process.wait()
        said = tail(self._log_path, LOG_TAIL_BYTES).strip().splitlines()[-5:]
        return AppError(
            f"The process that loads {self._app} ended with status {status}. The end of {self._log_path}:\n"
            + "\n".join(f"  {line}" for line in said)
        )

    def _evaluate_forever(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._waiting is not None)
                if self._closed or self._waiting is None:
                    return
                wanted, self._waiting = self._waiting, None
            wanted.on_result(self._evaluated(wanted))

    def _evaluated(self, wanted: _Evaluation) -> EvaluationArrived:
        path = self._work_dir / "evaluate.safetensors"
        try:
            write_parameters(path, wanted.parameters)
            wanted.parameters = Parameters({})  # the evaluation may outlast this version, which may be large
            answer = self._ask({"evaluate": str(path), "version": wanted.version})
        except Exception as e:  # noqa: BLE001 (the run goes on; the ledger has the error)
            return EvaluationArrived(wanted.version, detail=redacted(f"{type(e).__name__}: {e}"))
        return EvaluationArrived(wanted.version, metrics=answer["metrics"])
