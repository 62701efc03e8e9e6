"""A participant with a trainer of its own imports the packages of the base install, and no other."""

import json
import subprocess
import sys
from textwrap import dedent
from typing import Any

BASE_PACKAGES = {
    "annotated_types", "fedmq", "ml_dtypes", "msgpack", "numpy", "pika", "psutil", "pydantic", "pydantic_core",
    "typing_extensions", "typing_inspection",
}  # fmt: skip
"""Packages that a participant may import. Each costs every device disk, RAM and start-up time: think before you add."""
BLOCK_EXTRAS = """
import json, sys
for name in ("keras", "tensorflow", "torch", "numba", "pyarrow", "matplotlib", "cryptography"):
    sys.modules[name] = None  # import raises ModuleNotFoundError
before = set(sys.modules)
"""


def in_a_new_process(code: str) -> Any:
    """Return what `code` prints as JSON in a process that cannot import the extras."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_EXTRAS + dedent(code)], check=True, timeout=60, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_a_participant_without_keras_does_not_import_tensorflow() -> None:
    code = (
        "import sys, fedmq.participant.service.service, fedmq.participant.conditions, fedmq.participant.trainer;"
        "sys.exit(bool({'keras', 'tensorflow', 'jax', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_participant_imports_the_packages_of_the_base_install_and_no_other() -> None:
    found = in_a_new_process("""
        import fedmq.broker_config.amqp.transport
        import fedmq.participant.conditions
        import fedmq.participant.service.service
        import fedmq.participant.trainer

        new = [m for name, m in sys.modules.items() if name not in before]
        names = {m.__spec__.name.partition(".")[0] for m in new if getattr(m, "__spec__", None)}
        built_by_python = {name for name in names if name.startswith("_sysconfigdata")}
        print(json.dumps(sorted(names - built_by_python - sys.stdlib_module_names)))
    """)
    assert {"fedmq", "numpy", "pika"} <= set(found), "the test sees what is imported"
    assert set(found) <= BASE_PACKAGES, f"new for every participant: {sorted(set(found) - BASE_PACKAGES)}"


def test_a_task_is_trained_without_the_extras() -> None:
    done = in_a_new_process("""
        import numpy as np
        from fedmq.participant.trainer import TrainResult
        from fedmq.participant.training.task_work import do_task
        from fedmq.schemas.messages import Task, TrainingConfig
        from fedmq.schemas.parameters import Parameters

        class Trainer:
            def train(self, parameters, config):
                return TrainResult({"w": parameters["w"] + 1.0}, num_examples=3, num_steps=2)

        task = Task(task_id="r-1", run_id="r", participant_id="p", base_version=0, reply="delta",
                    training=TrainingConfig(), lease_s=1.0)
        done = do_task(Trainer(), task, Parameters({"w": np.array([1.0, 2.0])}), lambda: 0.0)
        print(json.dumps([done.payload["w"].tolist(), done.update.num_examples]))
    """)
    assert done == [[1.0, 1.0], 3]


def test_the_keras_trainer_without_keras_says_the_command_that_installs_it() -> None:
    said = in_a_new_process("""
        import fedmq

        try:
            fedmq.KerasTrainer
        except fedmq.MissingExtra as error:
            print(json.dumps(str(error)))
    """)
    assert said == (
        "The package keras is not installed. It is needed for an app with build_model. "
        "Install it with: pip install 'fedmq[keras]'"
    )


def test_the_pytorch_trainer_without_pytorch_says_the_command_that_installs_it() -> None:
    said = in_a_new_process("""
        import fedmq

        try:
            fedmq.TorchTrainer
        except fedmq.MissingExtra as error:
            print(json.dumps(str(error)))
    """)
    assert said == (
        "The package torch is not installed. It is needed for an app with a PyTorch model. "
        "Install it with: pip install 'fedmq[torch]'"
    )


def test_a_device_with_a_bundle_and_without_the_extra_is_told_so_at_its_start() -> None:
    """The bundle has the coordinator's key, and only the extra can check signatures with it."""
    said = in_a_new_process("""
        import fedmq

        try:
            import fedmq.run.devices
        except fedmq.MissingExtra as error:
            print(json.dumps(str(error)))
    """)
    assert said.startswith("The package cryptography is not installed.")
    assert said.endswith("Install it with: pip install 'fedmq[fleet]'")
