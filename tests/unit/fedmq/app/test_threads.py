"""The environment of processes that load an app."""

import pytest

from fedmq.app.threads import prepare_tensorflow, tensorflow_environment
from fedmq.schemas.errors import ConfigError


def test_threads_that_wait_for_each_other_sleep_unless_somebody_says_otherwise():
    assert tensorflow_environment({})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert tensorflow_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
    here = {"HOME": "/nowhere"}
    prepare_tensorflow(here)
    assert (here["OMP_WAIT_POLICY"], here["HOME"]) == ("PASSIVE", "/nowhere")


def test_one_variable_limits_all_threads():
    found = tensorflow_environment({"FEDMQ_TF_THREADS": "3"})
    assert {found[f"{name}_THREADS"] for name in ("TF_NUM_INTRAOP", "TF_NUM_INTEROP", "OMP_NUM")} == {"3"}
    for wrong in ("0", "-1", "two", ""):
        with pytest.raises(ConfigError, match="FEDMQ_TF_THREADS"):
            tensorflow_environment({"FEDMQ_TF_THREADS": wrong})
