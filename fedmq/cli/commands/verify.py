"""`fedmq verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options


def command(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, as in runs/mnist.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The federation file. It is needed to replay a strategy of your own.",
            show_default=False,
        ),
    ] = None,
    replay: Annotated[bool, typer.Option(help="Replay the archived updates: read all of them and add them up.")] = True,
    _debug: options.Debug = False,
) -> None:
    """Check that a run's ledger and checkpoints agree: nothing missing or twice, each weight as claimed.

    If the run has an archive, its updates are replayed and must make the committed states bit for bit. The run may
    still go on meanwhile. The exit status is 1 if something is wrong.
    """
    from fedmq.coordinator.audit import audit
    from fedmq.coordinator.state.run_folder import RunFolder
    from fedmq.schemas.texts import escaped

    strategy = None
    if config is not None:
        from fedmq.config import custom_strategy
        from fedmq.config.file import load_config

        strategy = custom_strategy.build(load_config(config).strategy)
    checks = audit.verify(RunFolder(run_dir), strategy, replay=replay)
    for check in checks:
        if check.left_out:
            print(f"  --    {check.name}: not checked, {check.left_out}")
        else:
            wrong_text = "" if check.holds else f": {escaped(audit.shown(check))}"
            print(f"  {'ok' if check.holds else 'WRONG':<5} {check.name}{wrong_text}")
    wrong = sum(not check.holds for check in checks)
    print(
        f"{run_dir}: {wrong} of {len(checks)} checks failed." if wrong else f"{run_dir}: all that can be checked holds."
    )
    if wrong:
        raise typer.Exit(1)
