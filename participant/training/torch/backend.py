"""PyTorch. Only this module imports it, so that an app without it never loads it."""

from __future__ import annotations

from fedmq.schemas.local.extras import require

require("torch", "an app with a PyTorch model")

import torch  # noqa: E402 (if it is missing, the line above says so)

__all__ = ["torch"]
