"""A PyTorch app as a user writes it. `write` puts it into a folder."""

from pathlib import Path

APP = """
import numpy as np
import torch

def build_model():
    hidden = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU()
    return torch.nn.Sequential(*hidden, torch.nn.Linear(8, 2))

def loss(output, y):
    return torch.nn.functional.cross_entropy(output, y)

def optimizer(params):
    return torch.optim.SGD(params, lr=0.1)

def load_data(participant_id):
    rng = np.random.default_rng(int(participant_id.rpartition("-")[2]))
    x = rng.normal(size=(64, 4))
    return x, (x[:, 0] > x[:, 1]).astype("int32")

def load_test_data():
    return load_data("test-99")
"""


def write(folder: Path, text: str = APP) -> Path:
    path = folder / "app.py"
    path.write_text(text)
    return path
