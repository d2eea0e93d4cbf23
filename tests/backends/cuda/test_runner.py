"""Values lie in one block of memory: what is read again is not written over."""

from __future__ import annotations

import pytest
import torch

from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.memory import Block
from irloom.backends.cuda.runner import Runner, planned
from irloom.backends.cuda.step import Step
from irloom.ir.parse import parse
from tests.backends.cuda.device import DEVICE

PROGRAM = """
# irloom 1
T: dim[1, 64]; S: dim[1, 8]

def layer(x: f32[T, 32], y: f32[T, 4, 8]) -> f32[T, 32]:
    a: f32[T, 32] = exp(x)
    b: f32[T, 32] = softmax(a)
    c: f32[T, 4, 8] = softmax(y)
    d: f32[T, 32] = reshape(c, dims=(T, 32))
    e: f32[T, 32] = add(b, d)
    return e

def main(ids: i32[T], seqs: seqs[T, S], rows: f32[64, 32] = weight("rows")) -> f32[S, 32]:
    x: f32[T, 32] = embedding(ids, rows)
    y: f32[T, 4, 8] = reshape(x, dims=(T, 4, 8))
    CALLS
    last: f32[S, 32] = last_rows(RESULT, seqs)
    return last
"""
CALL = "z = layer[0](x, y)", "z", 1
LOOP = "for i in range(3):\n        x = layer[i](x, y)", "x", 3


@pytest.mark.parametrize(("calls", "result", "times"), [CALL, LOOP])
def test_a_value_stays_while_another_sees_its_memory(calls: str, result: str, times: int) -> None:
    """A function is given a value and a view of it; or a loop carries the one on and reads the other."""
    program = lower(parse(PROGRAM.replace("CALLS", calls).replace("RESULT", result)))
    rows = torch.randn(64, 32, device=DEVICE)
    runner = Runner(program, lambda p, layer: rows, {}, Block(planned(program, 8, 2), DEVICE))

    def ints(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)

    owner, positions = ints(0, 0, 0, 0, 0, 1, 1, 1), ints(0, 1, 2, 3, 4, 0, 1, 2)
    step = Step(ints(*range(8)), positions, owner, ints(0, 5, 8), ints(5, 3), {})
    y = x = rows[:8]
    for _ in range(times):
        x = x.exp().softmax(-1) + y.view(8, 4, 8).softmax(-1).view(8, 32)
    torch.testing.assert_close(runner.run(step), x[[4, 7]], atol=1e-5, rtol=1e-5)
