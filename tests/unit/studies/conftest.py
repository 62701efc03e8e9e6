"""Fixtures of the studies' tests."""

import pytest

from fedmq.studies.report import figures


@pytest.fixture
def no_figures(monkeypatch):
    """Leave a page's figures empty. A test that reads texts and tables alone needs none, and they take most of the
    time."""
    for name in ("overview", "dynamics", "weights"):
        monkeypatch.setattr(figures, name, lambda *_: "")
    monkeypatch.setattr(figures, "curves", lambda *_: ("", ""))
