import subprocess
import sys


def test_a_participant_without_keras_does_not_import_tensorflow() -> None:
    code = (
        "import sys, fedmq.participant.service.service, fedmq.participant.conditions, fedmq.participant.trainer;"
        "sys.exit(bool({'keras', 'tensorflow', 'jax', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
