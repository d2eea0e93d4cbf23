"""Is each pass right on this model, and does the engine compute what its program says?"""

from .core import HOW, How, opened, prepared, trial_of, verify
from .engine import verify_engine

__all__ = ["HOW", "How", "opened", "prepared", "trial_of", "verify", "verify_engine"]
