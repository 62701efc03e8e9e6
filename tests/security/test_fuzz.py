"""A few seconds of the fuzz command on both sides, and the proof that it finds what it looks for."""

from __future__ import annotations

import random
import time

import numpy as np
import pika
import pytest

from fedmq.coordinator.decisions.updates.verdicts import Verdicts
from fedmq.participant.decisions.agent import Agent
from fedmq.schemas.codec import decode
from fedmq.schemas.codecs import leb128
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import MESSAGE_TYPES
from tests.security.fuzz import fuzz
from tests.security.fuzzing.corpus import samples
from tests.security.fuzzing.mutations import Headers, Mutator
from tests.security.fuzzing.watch import Failed

EPISODES = {
    "a stranger": (0, "malformed", 50),
    "a participant": (1, "settled", 200),
    "a hostile participant": (2, "malformed", 50),
    "a hostile participant's chunks": (3, "malformed", 50),
    "a hostile participant's coded updates": (4, "wrong_shape", 5),
    "a hostile participant's coded chunks": (5, "oversized", 10),
}
"""Episodes by the sender of the noise. Each has an outcome that shows that it was bad, with its least number."""
NO_LIMIT_S = 60.0
"""Tests assert on no time: the command does."""


@pytest.mark.parametrize(("first", "outcome", "least"), EPISODES.values(), ids=EPISODES.keys())
def test_bad_messages_end_nothing_and_honest_updates_count_once(first, outcome, least):
    found = fuzz(250, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=first, show=False)
    assert found.messages >= 250
    assert found.honest == 10
    assert found.outcomes[outcome] > least
    assert found.outcomes["settled"] > 5


@pytest.mark.parametrize("first", [0, 1, 9, 19], ids=["bf16", "bf16 in zstd", "powersgd in zstd", "topk"])
def test_bad_updates_in_a_codec_are_read_or_refused_with_a_reason(first):
    found = fuzz(300, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=first, show=False, which="reader")
    assert found.coded == 300
    assert found.outcomes["decoded"] > 30
    assert found.outcomes["malformed"] > 30


def test_a_device_gets_bad_tasks_in_a_codec_and_trains_the_honest_ones():
    found = fuzz(150, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=7, show=False, which="coded")
    assert found.coded >= 150
    assert found.outcomes["declined: model_differs"] > 5
    assert found.outcomes["declined: frozen_lost"] > 0
    assert found.honest > 5


def test_an_error_of_a_decoder_is_found(monkeypatch):
    monkeypatch.setattr(leb128, "unpack", lambda packed, _count: packed.astype(np.int64))
    with pytest.raises(Failed, match=r"the codec 'topk': decode\(\) raised"):
        fuzz(300, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=23, show=False, which="reader")


def test_every_kind_of_message_is_in_the_corpus_and_is_valid():
    found = samples()
    assert {sample.kind for sample in found} == set(MESSAGE_TYPES)
    for sample in found:
        decode(sample.body)


def test_the_same_seed_gives_the_same_messages_and_most_of_them_are_bad():
    def made(seed: int) -> list[bytes]:
        mutator, corpus = Mutator(random.Random(seed)), samples()
        return [mutator.message(corpus[i % len(corpus)], corpus) for i in range(200)]

    assert made(3) == made(3)
    assert made(3) != made(4)
    bad = 0
    for body in made(3):
        try:
            decode(body)
        except PeerError:
            bad += 1
    assert bad > 120


def test_the_properties_are_hostile_to_pika_itself():
    headers, raised = Headers(random.Random(0)), 0
    for _ in range(300):
        try:
            pika.BasicProperties().decode(headers.table())
        except Exception:  # noqa: BLE001  whatever it is: it would have ended the connection
            raised += 1
    assert raised > 20


PLANTED = {
    "an exception of the core": (0, Verdicts, "on_poison", "the coordinator ended: ZeroDivisionError"),
    "an exception of the agent": (1, Agent, "_on_notice", "the participant ended: ZeroDivisionError"),
}


@pytest.mark.parametrize(("first", "where", "name", "told"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_error_is_found_and_told_with_the_smallest_message(monkeypatch, first, where, name, told):
    monkeypatch.setattr(where, name, lambda *_: 1 // 0)
    with pytest.raises(Failed) as caught:
        fuzz(250, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=first, show=False)
    text = str(caught.value)
    assert told in text
    assert f"--seed 12 --episode {first} --messages 250" in text
    assert "smallest body (" in text


def test_a_message_that_costs_too_much_is_found(monkeypatch):
    def slow(self, event):
        ends_s = time.thread_time() + 0.03
        while time.thread_time() < ends_s:
            pass
        return original(self, event)

    original = Verdicts.on_poison
    monkeypatch.setattr(Verdicts, "on_poison", slow)
    with pytest.raises(Failed, match="ms of CPU time"):
        fuzz(20, seed=12, seconds=60.0, limit_s=0.02, first=0, show=False)


def test_noise_that_changes_the_model_by_one_bit_is_found(monkeypatch):
    changed = []

    def counts(self, event):
        if not changed:
            changed.append(event)
            bits = self._buffer.model.parameters["000/kernel"]
            bits.flags.writeable = True
            bits.view("u4")[0, 0] ^= 1
        return original(self, event)

    original = Verdicts.on_poison
    monkeypatch.setattr(Verdicts, "on_poison", counts)
    with pytest.raises(Failed, match="the model differs from that of a run without the noise"):
        fuzz(100, seed=12, seconds=60.0, limit_s=NO_LIMIT_S, first=0, show=False)
    assert changed
