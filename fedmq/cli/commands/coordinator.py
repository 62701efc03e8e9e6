"""`fedmq coordinator`."""

from __future__ import annotations

from fedmq.cli.commands import options
from fedmq.cli.signals import stopped_by_signals


def command(
    config: options.Config,
    broker: options.Broker = None,
    settings: options.Set = None,
    _debug: options.Debug = False,
) -> None:
    """Coordinate a run: start it, or continue it after a stop or a crash. The run_id says which run.

    Ctrl-C commits and leaves. The same command goes on from there.
    """
    federation = options.configured(config, broker, settings)
    from fedmq.run.coordinator import coordinator_for, summary_text

    with coordinator_for(federation) as service, stopped_by_signals(service.stop, "the coordinator"):
        summary = service.run()
    print(summary_text(federation, summary))
