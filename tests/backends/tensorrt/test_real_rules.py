"""The rules of the layers against the library: what they allow it builds, what they refuse it refuses."""

import pytest

from .asked import allowed, asked, network
from .questions import QUESTIONS
from .real import refusal

WIDER = {
    "reduced: einsum ...i,i->... of [(T, 8), (8,)]": "an ellipsis",
    "reduced: einsum ii->i of [(8, 8)]": "a diagonal",
}
"""What the library takes although its documentation does not allow it."""

SWEEPS = ("elementwise", "indexed", "reduced")
"""Kinds with a question for each element."""


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n.startswith(SWEEPS) else []) for n in QUESTIONS],
)
def test_a_layer_is_allowed_exactly_where_the_library_builds_it(name):
    if allowed(QUESTIONS[name]):
        assert refusal(network(QUESTIONS[name])) is None
    elif name not in WIDER:
        net, layer = asked(QUESTIONS[name])
        assert refusal(net, last=layer) is not None
