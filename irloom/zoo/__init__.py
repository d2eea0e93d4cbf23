"""Every causal language model that transformers knows, tiny and random, taken through irloom."""

from irloom.zoo.core import COLUMNS, Row
from irloom.zoo.examine import examine
from irloom.zoo.models import names
from irloom.zoo.sweep import sweep
from irloom.zoo.table import page, totals
from irloom.zoo.told import Told, failing

__all__ = ["COLUMNS", "Row", "Told", "examine", "failing", "names", "page", "sweep", "totals"]
