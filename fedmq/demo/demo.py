"""`fedmq demo`: a whole federation on this machine, to watch and to take apart.

It runs over RabbitMQ if that is installed. It writes everything (the app, the federation file, logs, ledger, model,
picture) to one folder. The same federation can be run by hand from there.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.handshake import identify
from fedmq.broker_config.node.node import PrivateNode, find_server
from fedmq.broker_config.topology import Topology
from fedmq.demo.backends import Backend, EmbeddedBackend, ProcessBackend
from fedmq.schemas.errors import BrokerError, LedgerError, MissingExtra
from fedmq.views.live import Frame, LiveView, summary_table, with_everybody
from fedmq.views.plots import plot_run
from fedmq.views.status import RunStatus, read_curve, read_status

APP = Path(__file__).with_name("app") / "app.py"
RUN_ID = "demo"
GOAL = 0.92
"""Accuracy at which the run stops. The live view and the picture draw it."""
LIMIT_S = 45.0
"""Limit on the coordinator's run time. The start-up comes on top."""
START_LIMIT_S = 120.0
POLL_S = 0.2
EXTRA_S = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds that each participant's machine takes longer for a task."""
WEIGHTS = (3.0, 1.0, 2.0, 1.0, 2.0)
"""Relative sizes of the participants' shares of the data."""
ALPHA = 1.0
SEED = 4


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The demo's arguments, and the places that follow from them."""

    folder: Path
    num_participants: int
    data: str | None
    """Path of an .npz file, "full", or None for the sample."""
    broker_url: str | None
    embedded: bool
    prefix: str = "fedmq-demo"
    """Prefix of the names on the broker."""

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of the participants."""
        return tuple(f"sensor-{number + 1}" for number in range(self.num_participants))

    @property
    def extra_s(self) -> dict[str, float]:
        """Seconds that each participant takes longer for a task, by id."""
        return {name: EXTRA_S[i % len(EXTRA_S)] for i, name in enumerate(self.names)}

    @property
    def config(self) -> Path:
        return self.folder / "federation.toml"

    @property
    def run_dir(self) -> Path:
        return self.folder / RUN_ID

    @property
    def picture(self) -> Path:
        return self.folder / "demo.png"


def run_demo(plan: DemoPlan, console: Console) -> int:
    """Run it to its end. Returns 0 if the goal was reached, else 1."""
    began_s = time.monotonic()
    write_files(plan)
    with backend(plan, console) as (running, why):
        console.print(Text(f"{why}\nEverything is written to {plan.folder}/\n"), soft_wrap=True)
        try:
            frame, over = watch(plan, running, console, began_s)
        except KeyboardInterrupt:
            console.print("Interrupted: ending the coordinator and the participants ...")
            raise
    console.print(summary_table(frame, over))
    if frame.run is None or not frame.curve:
        return 1
    console.print(places(plan), soft_wrap=True)
    # The last version may be a newer one than that which reached the goal.
    reached = max(value for _, value in frame.curve) >= GOAL
    if not reached:
        console.print(f"The goal of {GOAL:.0%} was not reached.", style="bold red")
    return 0 if reached else 1


def places(plan: DemoPlan) -> Text:
    """Draw the picture, and return the places of what the demo made."""
    return Text(
        f"\npicture  {_picture(plan)}\nmodel    {plan.run_dir / 'final.keras'}\nagain    fedmq status {plan.run_dir}"
    )


def _picture(plan: DemoPlan) -> str:
    """Draw the picture. Returns its path, or the reason if it cannot be drawn: a run does not fail for its picture."""
    try:
        plot_run(plan.run_dir, plan.picture, goal=GOAL)
    except MissingExtra as e:
        return f"not drawn. {e}"
    return str(plan.picture)


def write_files(plan: DemoPlan) -> None:
    """Write the app, its settings and the federation file."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(APP, plan.folder / "app.py")
    count = plan.num_participants
    settings = {
        "data": plan.data if plan.data in {None, "full"} else str(Path(str(plan.data)).resolve()),
        "participants": plan.names,
        "extra_s": list(plan.extra_s.values()),
        "weights": (WEIGHTS * math.ceil(count / len(WEIGHTS)))[:count],
        "alpha": ALPHA,
        "seed": SEED,
    }
    (plan.folder / "demo.json").write_text(json.dumps(settings, indent=2) + "\n")
    plan.config.write_text(
        _FEDERATION.format(run_id=RUN_ID, count=count, goal=GOAL, limit_s=LIMIT_S, prefix=plan.prefix)
    )


_FEDERATION = """\
# `fedmq demo` ran this. By hand: fedmq coordinator --config federation.toml, and a participant for each sensor.

app = "app.py"
runs_dir = "."

[run]
run_id = "{run_id}"
seed = 1
concurrency = {count}
min_participants = {count}
client_weights = "examples"
max_staleness = 30
evaluate_interval_s = 0.5

[run.stop]
max_time_s = {limit_s}
target = {{ name = "accuracy", value = {goal} }}

[strategy]
name = "fedbuff"
buffer_size = 5
staleness = {{ name = "polynomial", a = 0.5 }}

[training]
epochs = 1
batch_size = 32
learning_rate = 0.003

[broker]
prefix = "{prefix}"

[participant]
spool_dir = "spool"
hello_interval_s = 5
"""


@contextmanager
def backend(plan: DemoPlan, console: Console) -> Iterator[tuple[Backend, str]]:
    """Start everybody, and end everybody on the way out. Yields also a sentence on the way that was chosen, and why."""
    if plan.broker_url is not None and not plan.embedded:
        from fedmq.broker_config.amqp.transport import remove

        address = Addresses(plan.broker_url).current
        identity = identify(address)  # raises before anything is started if the broker is not there
        remove(
            plan.broker_url, queues=(), exchanges=()
        )  # there is nothing yet, but it logs in: a refusal is raised at once, too
        why = (
            f"Over {identity.product} {identity.version} at {address} (--broker): "
            "coordinator and participants are processes."
        )
        try:
            with ProcessBackend(plan.folder, plan.names, plan.broker_url) as running:
                yield running, why
        finally:
            tidy_broker(plan, plan.broker_url, console)
        return
    if plan.embedded or find_server() is None:
        reason = (
            "--embedded was given" if plan.embedded else "no rabbitmq-server is installed and no --broker was given"
        )
        with EmbeddedBackend(plan.config, plan.names) as running:
            yield running, f"Over the embedded transport, all in one process ({reason})."
        return
    console.print("Starting a private RabbitMQ node ...", highlight=False)
    node = PrivateNode(plan.folder / "broker")
    try:
        with node, ProcessBackend(plan.folder, plan.names, node.url) as running:
            yield (
                running,
                f"Over RabbitMQ (rabbitmq-server is installed): a private node on port {node.port}, "
                "coordinator and participants are processes.",
            )
    finally:
        shutil.rmtree(node.data_dir / "mnesia", ignore_errors=True)  # about 30 MB that nobody needs again


def tidy_broker(plan: DemoPlan, url: str, console: Console) -> None:
    """Remove the demo's queues and exchanges from somebody's broker."""
    from fedmq.broker_config.amqp.transport import remove

    topology = Topology(plan.prefix)
    queues = [*topology.coordinator_queues, *(topology.participant(name) for name in plan.names)]
    try:
        exchanges = [*topology.exchanges, *(topology.upload_exchange(name) for name in plan.names)]
        remove(url, queues=[queue.name for queue in queues], exchanges=[exchange.name for exchange in exchanges])
    except BrokerError as e:
        console.print(Text(f"The demo's queues, {plan.prefix}.*, are still on the broker: {e}", "yellow"))


def watch(plan: DemoPlan, running: Backend, console: Console, began_s: float) -> tuple[Frame, str]:
    """Show the run until its coordinator has ended. Returns the last frame, and the reason for the end."""
    speeds = {name: f"+{extra:.1f} s" for name, extra in plan.extra_s.items()}
    ended: dict[str, str] = {}
    with LiveView(console, "fedmq demo", GOAL) as view:
        while True:
            over = running.coordinator_ended(POLL_S)
            gone = (
                running.participants_ended()
            )  # before the ledger: a participant that left because of the end left after its commit
            run, curve = _read(plan.run_dir)
            if over is None and not _finished(run):
                ended.update(gone)
            frame = Frame(
                elapsed_s=time.monotonic() - began_s,
                run=run,
                curve=curve,
                participants=with_everybody(run, plan.names, dict.fromkeys(ended, "ended")),
                speeds=speeds,
                news=tuple(f"{name} {how}: the run goes on without it" for name, how in ended.items()),
                finishing=over is None and _finished(run),
            )
            view.show(frame, last=over is not None)
            if over is not None:
                return frame, _why(run, over)
            if run is None and frame.elapsed_s > START_LIMIT_S:
                return frame, f"the coordinator had not started after {START_LIMIT_S:.0f} s"
            if len(ended) == len(plan.names):
                return frame, "no participant is left"


def _read(run_dir: Path) -> tuple[RunStatus | None, list[tuple[float, float]]]:
    try:
        return read_status(run_dir), read_curve(run_dir)
    except LedgerError:
        return None, []


def _finished(run: RunStatus | None) -> bool:
    return run is not None and run.finished is not None


def _why(run: RunStatus | None, over: str) -> str:
    return run.finished if run is not None and run.finished is not None else over
