"""NeMo and Megatron checkpoints: ``open_path``, then ``Opened.config`` and ``open_checkpoint``."""

from irloom.frontends.nemo.checkpoint import Opened, open_checkpoint, open_path

__all__ = ["Opened", "open_checkpoint", "open_path"]
