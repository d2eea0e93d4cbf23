"""LoRA adapters in PEFT format, merged into a model's weights while they are read."""

from irloom.frontends.peft.adapter import Adapter, read_adapter
from irloom.frontends.peft.checkpoint import merged

__all__ = ["Adapter", "merged", "read_adapter"]
