"""What looks back a few tokens is layers over slots: no split, and the interpreter's logits."""

import pytest

from irloom.backends.tensorrt.program import Outside
from tests.backends.serving import FEW, LIMITS
from tests.backends.tensorrt.serving import Model

TOLERANCE = 2e-5


@pytest.mark.parametrize(
    ("family", "outside"),
    [
        ("lfm2", set[str]()),
        pytest.param("inkling_text", set[str](), marks=pytest.mark.slow),
        pytest.param("rwkv", {"carried_wkv", "relu2"}, marks=pytest.mark.slow),
        pytest.param("mamba", {"carried_selective_scan"}, marks=pytest.mark.slow),
    ],
)
def test_convolutions_and_shifts_are_layers(family: str, outside: set[str]) -> None:
    """With slots for all, and with so few that a sequence begins in a slot that another one had."""
    model = Model.of(family)
    program, scripts = model.program(), model.traffic(len(family))
    assert {o.node.op.name for o in program.outside} == outside
    for limits in (LIMITS, FEW):
        served = model.served(model.engine(program, limits), scripts)
        assert served.error < TOLERANCE, served.where


def test_states_in_pages_are_left_to_bodies() -> None:
    program = Model.of("lfm2").program("paged")
    outside = [o for o in program.parts if isinstance(o, Outside)]
    assert "states lie where the page table says, and layers take slots" in {o.reason for o in outside}
