"""The forms of updates and models in `fedmq status` and `fedmq explain`."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fedmq.coordinator.settings import DownlinkSettings, RunSettings, UplinkSettings
from fedmq.coordinator.state.ledger.forms import PLAIN, Forms
from fedmq.schemas.errors import LedgerError
from fedmq.schemas.messages import Uplink
from fedmq.views.explanation import explanation_view
from fedmq.views.forms import forms_text
from fedmq.views.status_view import headline
from tests.unit.fedmq.views.test_explanation import FOUND
from tests.unit.fedmq.views.test_views import run

HIDDEN = Forms(Uplink(codec="int8"), DownlinkSettings(codec="hidden"))


@pytest.mark.parametrize(
    ("uplink", "downlink", "told"),
    [
        ({}, {}, ""),
        ({"codec": "int8"}, {}, "updates in int8, models plain"),
        ({}, {"codec": "bf16"}, "updates plain, models in bf16"),
        (
            {"codec": "int4", "lossless": "zstd", "error_feedback": True},
            {"codec": "hidden"},
            "updates in int4 with error feedback and zstd, models in steps of a hidden state (int8)",
        ),
        (
            {"codec": "topk", "fraction": 0.05, "values": "bf16"},
            {"codec": "hidden", "step_codec": "topk"},
            "updates in topk (fraction 0.05, values in bf16) with error feedback, models in steps of a hidden state "
            "(topk, fraction 0.01)",
        ),
        ({"codec": "powersgd"}, {}, "updates in powersgd (rank 2) with error feedback, models plain"),
    ],
)
def test_the_forms_are_told_as_the_tables_name_them(uplink, downlink, told):
    assert forms_text(Forms(UplinkSettings(**uplink).order("delta"), DownlinkSettings(**downlink))) == told


def test_status_and_explain_tell_the_forms_and_their_json_has_both_tables():
    assert "\nupdates in int8, models in steps of a hidden state (int8)" in headline(run(forms=HIDDEN)).plain
    assert "models" not in headline(run()).plain
    screen = Console(file=io.StringIO(), width=120, color_system=None)
    screen.print(*explanation_view(replace(FOUND, forms=HIDDEN)), sep="\n")
    assert "Since the coordinator's last start: updates in int8, models in steps of a" in screen.file.getvalue()
    for told in (run(forms=HIDDEN).to_json(), replace(FOUND, forms=HIDDEN).to_json()):
        assert told["uplink"]["codec"] == "int8"
        assert told["downlink"]["codec"] == "hidden"
        assert told["downlink"]["step_codec"] is None
    assert FOUND.to_json()["uplink"] is None


def test_the_forms_of_a_ledger_are_read_and_those_of_an_older_fedmq_are_plain():
    assert Forms.of({"run": RunSettings(run_id="r", stop={"max_versions": 1}).model_dump()}) == PLAIN
    assert Forms.of({"uplink": {"codec": "int8"}, "downlink": {"codec": "hidden"}}) == HIDDEN


@pytest.mark.parametrize("settings", [{"uplink": {"codec": 7}}, {"downlink": {"codec": "gone\x1b[31m"}}, {"uplink": 3}])
def test_a_table_that_this_fedmq_does_not_know_is_told_in_a_sentence(settings):
    with pytest.raises(LedgerError) as refused:
        Forms.of(settings)
    told = str(refused.value)
    assert "which this fedmq does not write" in told
    assert not {"\n", "\x1b"} & set(told)
    assert "pydantic" not in told
