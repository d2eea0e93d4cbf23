"""Attention, masks and positions that a model spells out itself, found by running parts of its graph."""

from irloom.frontends.hf.spelled.attention import raise_attention
from irloom.frontends.hf.spelled.constants import fold_constants
from irloom.frontends.hf.spelled.inplace import follow_writes
from irloom.frontends.hf.spelled.positions import raise_positions
from irloom.frontends.hf.spelled.probe import Probe

__all__ = ["Probe", "raise_spelled"]


def raise_spelled(probe: Probe) -> None:
    """Rewrite a captured graph in place: each attention becomes one op, each count of tokens a position.

    Raises ``TraceError``, with module and line, where an attention is none that the IR has.
    """
    follow_writes(probe)
    fold_constants(probe)
    raise_attention(probe)
    raise_positions(probe)
