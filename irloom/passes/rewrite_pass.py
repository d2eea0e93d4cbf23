"""A pass that is one rule: ``match``, ``where`` and ``replace`` on the pass itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from irloom.ir.graph import Module

from .core import Changes, Pass
from .rewrite import Rewrite, apply


@dataclass(frozen=True)
class RewritePass(Pass, Rewrite):
    """Applies itself to every function until it matches nowhere; its options are its rule's settings.

    A pass of several rules is a ``Pass`` whose ``run`` gives them to ``apply``.
    """

    @abstractmethod
    def match(self, *holes: Any, **attributes: Any) -> Any:
        """The pattern."""

    @abstractmethod
    def replace(self, *args: Any, **holes: Any) -> Any:
        """What takes the place of what ``match`` returns."""

    def run(self, m: Module) -> Changes:
        return apply(m, [self])
