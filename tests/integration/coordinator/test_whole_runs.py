"""A run from its first hello to its final model, stopped, resumed and inspected."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedTransport
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.settings import StopSettings, TargetMetric
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.strategies import FedAsync
from fedmq.schemas.errors import CheckpointError, ConfigError
from fedmq.schemas.messages import TrainingConfig, update_id
from fedmq.schemas.parameters import Parameters
from tests.integration.coordinator.federation import RUN_ID, TOPOLOGY, initial, same_bits


def test_a_run_ends_after_its_versions_with_a_model_that_the_ledger_explains(federation):
    people = [federation.join(f"p{i}") for i in range(3)]
    summary = federation.run()
    assert (summary.run_id, summary.version, summary.finished) == (RUN_ID, 5, "max_versions")
    assert summary.accepted >= 15
    assert summary.model_path == federation.run_dir / "final.safetensors"
    assert same_bits(federation.final(), federation.replayed())
    assert not same_bits(federation.final(), initial())
    assert federation.final()["001/steps"] == 7
    with federation.ledger() as ledger:
        assert [(v.version, v.num_updates) for v in ledger.versions()] == [(n, 3) for n in range(1, 6)]
        assert [u.accepted_order for u in ledger.updates()] == list(range(1, summary.accepted + 1))
        assert sum(ledger.staleness().values()) == summary.accepted
        assert ledger.run().finished == "max_versions"
        assert ledger.open_tasks() == []
        assert {row.record.participant_id for row in ledger.participants()} == {"p0", "p1", "p2"}
    for p in people:
        p.wait_until(lambda p=p: any(n.event == "run_finished" for n in p.notices))
    assert federation.depth(TOPOLOGY.control) == 0


def test_every_accepted_update_gets_a_receipt_that_names_its_version_once_it_is_known(federation):
    federation.stop = StopSettings(max_updates=9)
    p = federation.join("p0")
    federation.concurrency = 1
    federation.run()
    p.wait_until(lambda: len(p.receipts) == 9)
    assert [r.verdict for r in p.receipts] == ["accepted"] * 9
    assert p.receipts[0].update_id == update_id(RUN_ID, p.tasks[0].task_id, "p0")
    assert [r.version for r in p.receipts] == [None, None, 1, None, None, 2, None, None, 3]


def test_fedasync_makes_a_version_of_every_update(federation):
    federation.strategy = FedAsync()
    federation.join("p0")
    summary = federation.run()
    assert (summary.version, summary.accepted) == (5, 5)
    assert same_bits(federation.final(), federation.replayed())


def test_a_stopped_run_is_resumed_and_gives_the_same_model_as_its_ledger(federation):
    federation.stop = StopSettings(max_versions=10)
    service = federation.service()

    def train_and_stop(p, task):
        if len(p.tasks) == 7:
            service.stop()
        p.train(task)

    federation.join("p0", train_and_stop)
    first = federation.start(service).result(30)
    assert (first.finished, first.model_path) == (None, None)
    assert first.version < 10
    with federation.ledger() as ledger:
        assert 0 < ledger.accepted() < 30
        elapsed_s = ledger.run().elapsed_s
    second = federation.run(initial_parameters=None)
    assert (second.finished, second.version, second.accepted) == ("max_versions", 10, 30)
    assert same_bits(federation.final(), federation.replayed())
    with federation.ledger() as ledger:
        assert ledger.run().elapsed_s > elapsed_s


def test_a_finished_run_gives_its_summary_at_once_and_needs_no_broker(federation):
    federation.join("p0")
    first = federation.run()
    assert federation.run(connect=None, initial_parameters=None) == first


def test_a_lost_final_model_is_written_again(federation):
    federation.join("p0")
    federation.run()
    before = federation.final()
    (federation.run_dir / "final.safetensors").unlink()
    federation.run()
    assert same_bits(federation.final(), before)


def test_the_export_gets_the_final_parameters(federation):
    federation.join("p0")

    def export(path):
        meta = checkpoint.read(path).meta
        path.with_suffix(".keras").write_text(json.dumps(meta))

    summary = federation.run(export=export)
    assert summary.model_path == federation.run_dir / "final.keras"
    assert json.loads(summary.model_path.read_text()) == {
        "run_id": RUN_ID,
        "version": 5,
        "non_trainable": ["001/steps"],
    }


def test_central_evaluations_reach_the_ledger_and_the_summary(federation):
    class Evaluator:
        def submit(self, version, parameters, on_result):
            assert not parameters["000/w"].flags.writeable or parameters["000/w"].shape == (5,)
            on_result(EvaluationArrived(version, {"accuracy": version / 10}))

    federation.join("p0")
    summary = federation.run(evaluator=Evaluator())
    assert summary.metrics == {"accuracy": 0.5}
    with federation.ledger() as ledger:
        assert ledger.evaluations()[-1].version == 5


def test_a_run_whose_target_is_never_measured_ends_at_the_first_evaluation_and_goes_on_with_another(federation):
    class Evaluator:
        def submit(self, version, parameters, on_result):
            on_result(EvaluationArrived(version, {"loss": version / 10}))

    federation.stop = StopSettings(target=TargetMetric(name="accuracy", value=0.9))
    with pytest.raises(ConfigError, match=r"run.stop.target.name: got 'accuracy'.*it measures 'loss'.*at version 0"):
        federation.run(evaluator=Evaluator())
    federation.join("p0")
    federation.stop = StopSettings(target=TargetMetric(name="loss", value=0.2, mode="max"))
    assert federation.run(evaluator=Evaluator()).finished == "target"
    assert same_bits(federation.final(), federation.replayed())


def test_an_evaluation_that_takes_long_holds_no_update_back(federation):
    """The evaluation of version 0 is over only once version 4 is there; the last version is still evaluated."""
    submitted, withheld = [], []

    class Slow:
        def submit(self, version, parameters, on_result):
            submitted.append(version)
            withheld.append(lambda: on_result(EvaluationArrived(version, {"accuracy": version / 10})))
            if version:
                withheld.pop()()

    def train(p, task):
        if task.base_version == 4 and withheld:
            withheld.pop()()
        p.train(task)

    federation.join("p0", train)
    summary = federation.run(evaluator=Slow())
    assert submitted[0] == 0
    assert submitted[1] >= 4
    assert (summary.version, summary.metrics) == (5, {"accuracy": 0.5})


def test_changed_settings_of_a_run_are_refused_with_the_difference(federation):
    federation.join("p0")
    federation.run()
    with pytest.raises(ConfigError, match=r"training\.epochs was 1 and is now 2"):
        federation.run(training=TrainingConfig(epochs=2))
    federation.stop = StopSettings(max_versions=6)  # limits may change
    federation.run()


def test_a_checkpoint_of_which_both_files_are_damaged_is_refused_with_what_it_held(federation):
    p = federation.join("p0", lambda p, task: len(p.tasks) < 5 and p.train(task))
    service = federation.service()
    running = federation.start(service)
    p.wait_until(lambda: len(p.tasks) == 5)
    service.stop()
    running.result(30)
    for which in ("checkpoints", "copies"):
        newest = max((federation.run_dir / which).iterdir())
        torn = bytearray(newest.read_bytes())
        torn[-1] ^= 1
        newest.write_bytes(torn)
    with pytest.raises(
        CheckpointError, match=r"checkpoints/.* is damaged.*copies/.* is damaged.*It holds version 1 with 4 updates"
    ):
        federation.run()


def test_only_the_kept_checkpoints_stay_on_disk(federation):
    federation.join("p0")
    federation.run()
    assert len(list((federation.run_dir / "checkpoints").iterdir())) <= federation.commit.keep_checkpoints
    assert np.isfinite(federation.final()["000/w"]).all()


def test_the_body_of_an_update_is_let_go_before_its_ack(federation):
    bodies, references = [], []

    class Watching(EmbeddedTransport):
        def consume(self, queue, on_delivery, prefetch):
            def watch(delivery):
                if queue == TOPOLOGY.updates.name:
                    copy = bytes(bytearray(delivery.body))  # the embedded broker keeps its own
                    bodies.append(copy)
                    delivery = replace(delivery, body=copy)
                on_delivery(delivery)

            super().consume(queue, watch, prefetch)

        def ack(self, delivery):
            if delivery.queue == TOPOLOGY.updates.name:
                references.extend(sys.getrefcount(body) for body in bodies)
            return super().ack(delivery)

    federation.concurrency = 1  # then every update that was delivered has had its step
    federation.join("p0")
    federation.run(connect=lambda: Watching(federation.broker, "coordinator"))
    alone = sys.getrefcount(bodies[0])
    assert len(bodies) >= 15
    assert set(references) == {alone + 1}  # one more for the loop variable of the test itself


def test_a_model_with_more_tensors_than_the_setting_allows_is_told_before_anything_begins(federation):
    def deep():
        return Parameters({f"{i}/w": np.zeros(1, np.float32) for i in range(17)})

    with pytest.raises(ConfigError, match=r"17 tensors, \[broker\] max_tensors is 16: raise it to 17"):
        federation.service(initial_parameters=deep, max_tensors=16).run()
    assert not federation.run_dir.joinpath("ledger.sqlite").exists()
