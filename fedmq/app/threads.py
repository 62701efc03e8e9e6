"""The threads of TensorFlow, PyTorch and OpenMP, and TensorFlow's remarks: they read their environment, once."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from fedmq.schemas.errors import ConfigError


def tensorflow_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a process that loads an app. `FEDMQ_TF_THREADS` limits its threads.

    OpenMP's threads, which PyTorch and scikit-learn use, spin while they wait for each other. If several participants
    share the cores, they spend them so, and a training takes minutes in place of a second. So they sleep instead.

    Raises ConfigError if FEDMQ_TF_THREADS is not a number of threads.
    """
    found = dict(environ)
    found.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    found.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threads = environ.get("FEDMQ_TF_THREADS")
    if threads is not None:
        if not threads.isdecimal() or int(threads) < 1:
            raise ConfigError(f'FEDMQ_TF_THREADS is "{threads}", expected the number of threads, 1 or more.')
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
            found[name] = threads
    return found


def prepare_tensorflow(environ: MutableMapping[str, str] = os.environ) -> None:
    """Change this process's environment in the same way, before it loads an app."""
    environ.update(tensorflow_environment(environ))
