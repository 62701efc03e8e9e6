"""Apps of federations under test."""


def plain_app(size: int) -> str:
    """Return the text of an app without Keras: a model of `size` zeros, to which each task adds 1 in 0.05 s."""
    return f"""
import threading
import numpy as np

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        threading.Event().wait(0.05)
        class Result:
            num_examples, num_steps, metrics = 10, 1, {{"loss": 1.0}}
        Result.parameters = {{name: array + 1 for name, array in parameters.items()}}
        return Result

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {{"w": np.zeros({size}, dtype="float32")}}
"""
