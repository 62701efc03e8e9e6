"""The first lines of a command.

A Ctrl-C that comes while Python still loads the command line ends the process as a signal does, and without a
traceback. `fedmq.cli.signals` takes over from there.
"""

from __future__ import annotations

import signal
import sys

# A child of multiprocessing that imports the script again keeps its own way with signals.
if "multiprocessing" not in sys.modules and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    from fedmq.cli.cli import main as run

    run()
