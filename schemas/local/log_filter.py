"""The log without secrets, also in what other libraries write, and in tracebacks that nobody caught.

The filter belongs on every handler: Python asks a logger's own filters about its own records only, and not about its
children's. `fedmq.schemas.local.console_log` puts it there.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

from fedmq.schemas.redaction import redacted


class RedactingFilter(logging.Filter):
    """Redacts a record's message, arguments included, and its traceback. It lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  wrong arguments: `logging` itself reports them, and shows the format alone
            message = str(record.msg)
        record.msg, record.args = redacted(message), None
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if record.exc_text:
            record.exc_text = redacted(record.exc_text)
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        return True


def redact_uncaught() -> None:
    """Redact the tracebacks of exceptions that nobody catches, in this and in every other thread."""

    def show(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))

    def show_of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            show(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = show
    threading.excepthook = show_of_thread
