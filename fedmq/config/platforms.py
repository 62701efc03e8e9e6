"""Environment variables that a platform makes by itself, because a service or a container has the name `fedmq`.

Kubernetes tells every pod of the services in its namespace, and Docker tells a container of those that it is linked to.
A service called fedmq-broker gives, among others:

    FEDMQ_BROKER_SERVICE_HOST=10.0.0.7             FEDMQ_BROKER_PORT=tcp://10.0.0.7:5672
    FEDMQ_BROKER_SERVICE_PORT=5672                 FEDMQ_BROKER_PORT_5672_TCP=tcp://10.0.0.7:5672
    FEDMQ_BROKER_SERVICE_PORT_AMQP=5672            FEDMQ_BROKER_PORT_5672_TCP_PROTO=tcp (and _ADDR, _PORT)

A link adds FEDMQ_NAME=/ours/fedmq, and FEDMQ_ENV_… for each variable of the other container.

Name and value must both be the platform's. So FEDMQ_PORT=5672, which somebody wrote for us, is still an error.
Sources: kubernetes/pkg/kubelet/envvars, and "Legacy container links" of Docker's manual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_URL = r"(?:tcp|udp|sctp)://\S+:\d{1,5}"
_PROTOCOL = r"(?:TCP|UDP|SCTP)"
_FORMS = tuple(
    (re.compile(rf"FEDMQ(?:_[A-Z0-9_]+)?_{name}"), re.compile(value))
    for name, value in (
        ("SERVICE_HOST", r"[0-9A-Za-z.:-]+"),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d{1,5}"),
        ("PORT", _URL),
        (rf"PORT_\d{{1,5}}_{_PROTOCOL}(?:_START|_END)?", _URL),
        (rf"PORT_\d{{1,5}}_{_PROTOCOL}_PROTO", r"tcp|udp|sctp"),
        (rf"PORT_\d{{1,5}}_{_PROTOCOL}_PORT(?:_START|_END)?", r"\d{1,5}"),
        (rf"PORT_\d{{1,5}}_{_PROTOCOL}_ADDR", r"[0-9A-Za-z.:-]+"),
        ("NAME", r"/[^/\s]+/[^/\s]+"),
    )
)
"""Name and value of each form. Both have to match as a whole."""
_OF_THE_OTHER = re.compile(r"(FEDMQ(?:_[A-Z0-9_]+?)?)_ENV_\w+")


def made_by_platform(name: str, environ: Mapping[str, str]) -> bool:
    """True if the platform made this variable, and no person."""
    if _is_form(name, environ[name]):
        return True
    # Another container's variable has any value. It comes with the link's own.
    link = _OF_THE_OTHER.fullmatch(name)
    return link is not None and _is_form(f"{link[1]}_NAME", environ.get(f"{link[1]}_NAME", ""))


def _is_form(name: str, value: str) -> bool:
    return any(form.fullmatch(name) and content.fullmatch(value) for form, content in _FORMS)
