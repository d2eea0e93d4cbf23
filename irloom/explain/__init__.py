"""What irloom makes of a model, before anything is built: no weights are read, and no device is used."""

from .core import Explanation, explain
from .prediction import Prediction

__all__ = ["Explanation", "Prediction", "explain"]
