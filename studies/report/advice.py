"""Advice of a report on what to change, in the words of the place in which its study is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["file", "code", "run"]
"""A study's file; a script that makes a `Study`; or no study's file at all: a recorded run and its federation file."""


@dataclass(frozen=True)
class Advice:
    """Phrases of the report, as HTML."""

    steps: str
    """Owner of the untuned step sizes."""
    target: str
    """Way to name a target."""
    tune: str
    """Way to have strategies tuned that are not."""
    widen: str
    """Way to try values beyond the edge."""


_WRITE_ONE = (
    "write a study's file with these strategies, and give it in the place of the federation file "
    "(<code>fedmq study --from-run RUN STUDY.toml</code>)"
)
ADVICE: dict[Source, Advice] = {
    "file": Advice(
        steps="those of the study's file",
        target="Name one with <code>target</code> in the study's file.",
        tune="Take <code>tuning = false</code> out of that file",
        widen="List values for them (<code>tune</code>), or let the grid grow further (<code>tuning.extend</code>).",
    ),
    "code": Advice(
        steps="those that the study was given",
        target="Name one with <code>Study(target=…)</code>.",
        tune="Give the study a <code>fedmq.Tuning()</code>",
        widen="List values for them (<code>Contender(tune=…)</code>), or let the grid grow further "
        "(<code>Tuning(extend=…)</code>).",
    ),
    "run": Advice(
        steps="those of the run's federation file, and the defaults of the other strategies",
        target=f"To name one, {_WRITE_ONE}.",
        tune=f"To tune, {_WRITE_ONE},",
        widen=f"To list values, {_WRITE_ONE}.",
    ),
}
