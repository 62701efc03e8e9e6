"""Put the parts of a coordinator together, as a federation file asks. No other module does.

It imports nothing of a participant, so that the process pays for its own role alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedmq.app.model_distiller import ModelDistiller
from fedmq.app.model_process import ModelChild
from fedmq.app.needed_files import check_files
from fedmq.app.parameter_files import read_parameters
from fedmq.broker_config.transport import Transport
from fedmq.config import custom_strategy
from fedmq.config.file import FederationConfig
from fedmq.coordinator.members import Members
from fedmq.coordinator.service.outgoing.certificates import Registrar
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.service.summary import RunSummary
from fedmq.coordinator.state.run_folder import RunFolder, unwritable
from fedmq.coordinator.strategies.protocol import Distils, Strategy
from fedmq.coordinator.uplink import uplink_codec
from fedmq.run.broker_user import amqp, check_user, log_identity
from fedmq.schemas.errors import AppError, SpecMismatch
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Sign
from fedmq.schemas.tensors import check_spec, spec_of
from fedmq.schemas.texts import escaped

log = EventLog(__name__)

MOST_HEADER_BYTES = 16 * 1024 * 1024
"""Bytes that a file of initial parameters may take beside the model's own: about 100 for each tensor."""


@contextmanager
def coordinator_for(
    config: FederationConfig, connect: Callable[[], Transport] | None = None, members: Members | None = None
) -> Iterator[CoordinatorService]:
    """Yield the service, with the process that loads the app beside it. `members` are those of the fleet, if there is
    one.

    Raises AppError if the app cannot be loaded, and ConfigError if this is not the coordinator's user on the broker, or
    if a file that the app needs is another one.
    """
    with ExitStack() as stack:
        registrar: Registrar | None = None
        sign: Sign | None = None
        if members is None and config.security.fleet is not None:
            from fedmq.run.enrolled import open_fleet  # it takes the extra `fleet`

            fleet = stack.enter_context(open_fleet(config))
            config, members, registrar, sign = fleet.config, fleet.members, fleet.registrar, fleet.sign
        yield from _coordinator_for(config, connect, members, registrar, sign)


def _coordinator_for(
    config: FederationConfig,
    connect: Callable[[], Transport] | None,
    members: Members | None,
    registrar: Registrar | None,
    sign: Sign | None,
) -> Iterator[CoordinatorService]:
    user = config.security.coordinator_user
    kind = config.security.kind(config.broker.auth, fleet=members is not None)
    log_identity(kind, user, user, fleet=members is not None)
    if connect is None:
        check_user(config, kind, user, "security.coordinator_user")
    check_files(config.files)
    strategy = custom_strategy.build(config.strategy)
    uplink = uplink_codec(config.uplink, strategy.reply)
    log.info("app_loading", app=config.app)
    try:
        child = ModelChild(Path(config.app), config.run_dir / "model")
    except OSError as error:
        raise unwritable(config.run_dir, error) from error
    try:
        child.ready()
        yield CoordinatorService(
            run_dir=config.run_dir,
            run=config.run,
            commit=config.commit,
            archive=config.archive,
            strategy=strategy,
            training=config.training,
            connect=connect or (lambda: amqp(config.broker, f"coordinator {config.run.run_id}")),
            topology=config.broker.topology(),
            initial_parameters=initial_parameters(config, child),
            frozen=child.frozen,
            check_model=model_check(config, child),
            evaluator=child if child.evaluates else None,
            distiller=distiller_of(strategy, config, child),
            export=child.export if child.exports else None,
            max_message_bytes=config.broker.max_message_bytes,
            chunk_bytes=config.broker.chunk_bytes,
            max_payload_bytes=config.broker.max_payload_bytes,
            max_tensors=config.broker.max_tensors,
            publish_timeout_s=config.broker.publish_timeout_s,
            identity=kind,
            members=members,
            registrar=registrar,
            sign=sign,
            uplink=uplink,
            downlink=config.downlink,
        )
    finally:
        child.close()


def summary_text(config: FederationConfig, summary: RunSummary) -> str:
    """Return a text for a person on how the run ended."""
    discarded = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.discarded.items())) or "none"
    metrics = "  ".join(f"{escaped(name)} {value:.4f}" for name, value in summary.metrics.items())
    if summary.finished is None:
        return (
            f"Run {summary.run_id} stopped at version {summary.version} with {summary.accepted} updates: "
            "the same command continues it."
        )
    lines = [
        f"Run {summary.run_id} finished ({summary.finished}) at version {summary.version}: "
        f"{summary.accepted} updates accepted, discarded: {discarded}."
    ]
    if metrics:
        lines.append(f"On the test data: {metrics}")
    folder = RunFolder(config.run_dir)
    models = [path for path in (folder.final_parameters, folder.final_model) if path and path.exists()]
    lines.append(f"The model: {' and '.join(str(path) for path in models) or 'not saved'}")
    return "\n".join(lines)


def distiller_of(strategy: Strategy[Any], config: FederationConfig, child: ModelChild) -> ModelDistiller | None:
    """Return the child as what distils versions; None if the strategy asks for none, or if the app cannot."""
    if not isinstance(strategy, Distils):
        return None
    if child.distils:
        return ModelDistiller(child, config.run_dir / "model" / "distil")
    detail = "every version will be the plain mean: give the app a distil(ensemble, start, seed)"
    log.error("app_cannot_distil", app=config.app, strategy=strategy.name, detail=detail)
    return None


def initial_parameters(config: FederationConfig, child: ModelChild) -> Callable[[], Parameters]:
    """Return the function that reads a new run's parameters: those of `initial`, or the app's. It raises AppError."""

    def read() -> Parameters:
        if config.initial is None:
            return child.initial()
        path = Path(config.initial)
        if not path.exists():
            raise AppError(f"There is no file {path}, which `initial` in the federation file names.")
        outline = child.outline()
        most_bytes = outline.num_bytes + MOST_HEADER_BYTES
        parameters = read_parameters(path, most_bytes=most_bytes, named_by_user=True)
        try:
            check_spec(parameters, spec_of(outline))
        except SpecMismatch as e:
            raise AppError(f"{path}, which `initial` names, is not of the model of {config.app}: {e}") from None
        return parameters

    return read


def model_check(config: FederationConfig, child: ModelChild) -> Callable[[Parameters], None]:
    """Refuse to continue a run whose app builds another model now: at the start, and not in every participant."""

    def check(parameters: Parameters) -> None:
        try:
            check_spec(child.outline(), spec_of(parameters))
        except SpecMismatch as e:
            raise AppError(
                f"{config.app} does not build the model of the run in {config.run_dir}: {e}. Put the app back as it "
                "was to continue the run, or choose another run_id for a new one"
            ) from None

    return check
