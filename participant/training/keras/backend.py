"""Keras on TensorFlow. Only this module imports them, so that the settings come first."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from fedmq.schemas.local.extras import require

for _package in ("keras", "tensorflow"):
    require(_package, "an app with build_model")

import keras  # noqa: E402 (if it is missing, the lines above say so)
import tensorflow as tf  # noqa: E402

__all__ = ["keras", "tf"]
