"""Each op's network, run in torch, computes what the body of the op does."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from irloom.backends.tensorrt.context import LOWERINGS
from irloom.backends.tensorrt.lower import load_handlers, lower
from irloom.backends.tensorrt.program import Outside, Program, Segment
from irloom.ir.dims import sym
from irloom.ir.elem import SEQS, Cached
from irloom.ir.graph import Func, Module, Node, Param, Value
from irloom.ir.interp import resolve
from irloom.ir.op import OPS
from irloom.ir.seqs import Seqs
from irloom.ir.types import Type
from irloom.testing.trial import CannotTry, Draw, Trial, written
from irloom.testing.values import BATCHES, Batch, values
from tests.backends.tensorrt.real import refusal
from tests.ir.test_ops import CASES

load_handlers()

COMPUTED = ("f32", "f16", "bf16", "i32", "i64", "bool")
"""Elements that layers compute in. Of others TensorRT has some as what is stored, and a few not at all."""

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of entries made in two ways, as a share and in absolute terms."""


def program(trial: Trial) -> Program:
    """A module of one op, lowered."""
    params = [Param(f"x{i}", t) for i, t in enumerate(trial.operands) if isinstance(t, Type)]
    given = iter(params)
    args: list[Any] = [next(given) if isinstance(t, Type) else t for t in trial.operands]
    made = [Value(f"y{i}", t) for i, t in enumerate(trial.op.infer(trial.operands, trial.attrs))]
    node = Node(trial.op, args, dict(trial.attrs), made)
    dims = {"T": (1, 64), "S": (1, 8), "P": (1, 8)}
    step = (
        [] if any(p.type.elem == SEQS for p in params) else [Param("step", Type(SEQS, (sym("T"), sym("S"))))]
    )
    return lower(Module({"main": Func("main", [*params, *step], [node], made)}, dims=dims))


def inputs(p: Program, given: Sequence[Any], batch: Batch) -> dict[str, torch.Tensor]:
    """What networks of ``p`` take by name, for operands that are values."""
    seqs = Seqs.of(batch.lengths)
    step = {"ids": seqs.positions, "positions": seqs.positions, "last": seqs.starts[1:] - 1}
    return {**step, **{v.name: x for v, x in zip(p.module.main.data, given, strict=False)}}


def check(trial: Trial) -> None:
    p = program(trial)
    (segment,) = p.parts
    assert isinstance(segment, Segment)
    for batch in BATCHES:
        args = values(trial.operands, batch)
        attrs: dict[str, Any] = {k: resolve(v, batch.env) for k, v in trial.attrs.items()}
        wanted = trial.op.reference(*args, **attrs)
        given = inputs(
            p, [a for a, t in zip(args, trial.operands, strict=True) if isinstance(t, Type)], batch
        )
        made = segment.network.run(given, {}.__getitem__)
        for v, x in zip(
            p.module.main.returns, wanted if isinstance(wanted, tuple) else [wanted], strict=True
        ):
            compare(made[v.name], x, f"{trial}, {v.name}")


def compare(made: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    assert (made.dtype, made.shape) == (wanted.dtype, wanted.shape), what
    allowed = TOLERANCE.get(wanted.dtype, 0.0)
    torch.testing.assert_close(
        made, wanted, rtol=allowed, atol=allowed, equal_nan=True, msg=lambda said: f"{what}: {said}"
    )


def trials(name: str) -> list[Trial]:
    return [t for given, attrs in CASES[name] for t in written(OPS[name], given, attrs)]


TENSOR_OPS = sorted(
    name
    for name in set(LOWERINGS) & set(CASES)
    if not any(isinstance(x, Type) and isinstance(x.elem, Cached) for t in trials(name) for x in t.operands)
)


BITS = "bitwise_xor"
CHOOSES = ("argmax", "topk")
"""Ops whose result says which of equal entries it took, so that only wide floats can be compared."""


@pytest.mark.parametrize("name", TENSOR_OPS)
def test_an_op_computes_what_its_body_does(name):
    computed = [t for t in trials(name) if all(e in COMPUTED for e in elements(t))]
    if name == BITS:
        assert all(isinstance(program(t).parts[0], Outside) for t in computed)
        return
    assert computed
    for trial in computed:
        if name not in CHOOSES or str(trial.operands[0]).partition("[")[0] not in ("i32", "i64"):
            check(trial)


def elements(trial: Trial) -> set[str]:
    """The elements of operands and results."""
    types = [*trial.operands, *trial.op.infer(trial.operands, trial.attrs)]
    return {str(t.elem) for t in types if isinstance(t, Type) and t.elem != SEQS}


DRAWN = sorted(n for n in TENSOR_OPS if n not in (BITS, *CHOOSES))


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_an_op_computes_what_its_body_does_on_any_dims(name):
    try:
        drawn = list(Draw(OPS[name], {}, {}).trials(12))
    except CannotTry:
        pytest.skip("its signature leaves dims to attributes: written cases try it")
    for trial in drawn:
        check(trial)


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TENSOR_OPS if n != BITS])
def test_the_library_builds_an_op(name):
    for trial in trials(name):
        if all(e in COMPUTED for e in elements(trial)):
            for segment in program(trial).segments:
                assert refusal(segment.network) is None, str(trial)
