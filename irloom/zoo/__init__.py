"""Every causal language model that transformers knows, tiny and random, taken through irloom."""

from irloom.zoo.core import COLUMNS, Row
from irloom.zoo.examine import examine
from irloom.zoo.kernels import KernelRow, as_kernels, kernel_page, kernel_verdicts
from irloom.zoo.models import names
from irloom.zoo.networks import NetworkRow, as_networks, check_target, network_page, verdicts
from irloom.zoo.sweep import sweep
from irloom.zoo.table import page, totals
from irloom.zoo.told import Told, failing

__all__ = [
    "COLUMNS",
    "KernelRow",
    "NetworkRow",
    "Row",
    "Told",
    "as_kernels",
    "as_networks",
    "check_target",
    "examine",
    "failing",
    "kernel_page",
    "kernel_verdicts",
    "names",
    "network_page",
    "page",
    "sweep",
    "totals",
    "verdicts",
]
