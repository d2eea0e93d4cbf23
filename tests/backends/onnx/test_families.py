"""Models as ONNX compute what the library does: prompts of two lengths in two slots, then a token each.

ONNX Runtime runs the exported files; keys and values that it leaves in one step are what it reads in the next.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.onnx import Exported, Style, export  # noqa: E402
from irloom.backends.slots import Slots  # noqa: E402
from irloom.frontends.hf.live import LiveCheckpoint  # noqa: E402
from irloom.frontends.hf.selfcheck import import_tiny  # noqa: E402
from irloom.ir.graph import Module  # noqa: E402
from irloom.passes import run_pipeline  # noqa: E402
from irloom.runtime.core import Batch  # noqa: E402
from irloom.zoo.models import Specimen  # noqa: E402

PIPELINE = "canonicalize, raise, canonicalize, outline, absorb-mla, gather-logits, kv-cache, kv-plan(layout=linear)"
LENGTH = 32
