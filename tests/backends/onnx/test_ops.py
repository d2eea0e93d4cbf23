"""Every op, exported alone and run by ONNX Runtime, gives what its body gives.

Operands are those on which the ops themselves are tried, and random ones where a signature says enough. Of
16-bit elements ONNX Runtime's CPU provider computes in f16 alone, so that stands for bf16 here. Caches have a
slot for each sequence; some tokens are in them already.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.onnx import Style, export  # noqa: E402
from irloom.backends.onnx.lower import STYLE, expressed  # noqa: E402
from irloom.ir.checkpoint import RandomCheckpoint  # noqa: E402
from irloom.ir.dims import evaluate, sym  # noqa: E402
from irloom.ir.elem import ELEMS, SEQS, Cached, Paged, State  # noqa: E402
from irloom.ir.errors import IRError  # noqa: E402
from irloom.ir.graph import Builder, Func, Module, Param  # noqa: E402
from irloom.ir.interp import Interpreter, empty_cache  # noqa: E402
from irloom.ir.op import OPS, Op  # noqa: E402
from irloom.ir.parse import parse  # noqa: E402
from irloom.ir.seqs import PagedCache, Seqs, StateCache  # noqa: E402
from irloom.ir.types import Type  # noqa: E402
from irloom.testing.trial import Draw, Trial, written  # noqa: E402
from tests.ir.test_ops import CASES, GIVEN  # noqa: E402

LENGTHS, PAST, SLOTS, LONGEST = (3, 1, 4), (2, 5, 0), 4, 16
"""Sequence ``i`` brings ``LENGTHS[i]`` tokens after ``PAST[i]``, in slot ``i + 1``; slot 0 is free."""
TOKENS = sum(LENGTHS)
SIZES = {"T": TOKENS, "S": len(LENGTHS), "P": SLOTS}
SORTS = ("topk", "argmax")
"""Ops that may choose any of equal entries."""
BFLOAT, HALF = ELEMS["bf16"], ELEMS["f16"]


def run_here(t: Any) -> Any:
    """A type as ONNX Runtime runs it here: f16 for bf16, a slot a sequence."""
    if not isinstance(t, Type):
        return t
    elem = t.elem
    if isinstance(elem, Paged):
        own = HALF if elem.elem == BFLOAT else elem.elem
        return t.with_elem(replace(elem, elem=own, page=LONGEST * elem.stride, window=None))
    if isinstance(elem, State):
        return t.with_elem(State(HALF if elem.elem == BFLOAT else elem.elem, LONGEST))
    return t.with_elem(HALF) if elem == BFLOAT else t


MORE: dict[str, list[Any]] = {
    "kv_append": [(["paged[f32, 6](values=0, stride=3)[P, 2, 8]", "f32[T, 2, 8]", None, "seqs[T, S]"], {})],
}
"""Operands that ops are not tried on by themselves."""


def trials(op: Op) -> Iterator[Trial]:
    """Applications of an op."""
    for given, attrs in [*CASES[op.name], *MORE.get(op.name, [])]:
        yield from written(op, given, attrs)
    if op.operands and op.name not in GIVEN and not re.search(r"_|%", op.signature.text):
        yield from Draw(op, {}, {}).trials(3)


def alone(trial: Trial) -> Module:
    """A program of one op."""
    types = [run_here(t) for t in trial.operands]
    given = [Param(f"x{i}", t) if isinstance(t, Type) else t for i, t in enumerate(types)]
    params = [Param("ids", Type(ELEMS["i32"], (sym("T"),))), *(p for p in given if isinstance(p, Param))]
    f = Func("main", params)
    attrs = {k: HALF if v == BFLOAT else v for k, v in trial.attrs.items()}
    with Builder(f) as b:
        made = b.emit(trial.op, given, attrs)
    results = made if isinstance(made, tuple) else (made,)
    f.returns = [*results]
    return Module({"main": f}, dims={"T": (1, 64), "S": (1, 8), "P": (1, 8)})


def values(params: Sequence[Param], seed: int = 0, different: bool = False) -> list[Any]:
    """A value for each parameter; integers are 1 to 3, or all different, caches are full of numbers."""
    g = torch.Generator().manual_seed(seed)
    pools = {p.type.elem.pool for p in params if isinstance(p.type.elem, Cached)}
    tables = {pool: torch.arange(1, SLOTS).view(-1, 1).int() for pool in pools}

    def value(t: Type) -> Any:
        if t.elem == SEQS:
            return Seqs.of(LENGTHS, PAST if pools else None, tables)
        if isinstance(t.elem, Cached):
            empty = empty_cache(t, SLOTS)
            if isinstance(empty, StateCache):
                return replace(
                    empty, states=torch.rand(empty.states.shape, generator=g).to(empty.states.dtype)
                )
            k, v = (torch.randn(x.shape, generator=g).to(x.dtype) for x in (empty.k, empty.v))
            return replace(empty, k=k, v=v)
        dims = [evaluate(d, SIZES) for d in t.dims]
        if t.plain.kind == "float":
            return (torch.randn(dims, generator=g) + 0.5).to(t.plain.torch)
        if t.plain.kind == "bool":
            return torch.rand(dims, generator=g) < 0.5
        if different:
            return torch.randperm(math.prod(dims), generator=g).reshape(dims).to(t.plain.torch)
        return torch.randint(1, 4, dims, generator=g).to(t.plain.torch)

    return [value(p.type) for p in params]


def step(past: Sequence[int]) -> dict[str, Any]:
    """What a step gives, with a slot 0 that takes no part."""
    counts = np.array([0, *LENGTHS])
    starts = np.concatenate([[0], np.cumsum(counts)])
    width = max(LENGTHS)
    real = np.arange(width) < counts[:, None]
    pad = np.zeros(real.shape, np.int32)
    pad[real] = np.arange(TOKENS)
    before = np.array([1, *past])
    given = {
        "positions": np.concatenate([np.arange(p, p + n) for p, n in zip(past, LENGTHS, strict=True)]),
        "last": starts[2:] - 1,
        "starts": starts,
        "past": before,
        "lengths": before + counts,
        "pad": pad,
        "unpad": np.flatnonzero(real),
    }
    return {name: x.astype(np.int32) for name, x in given.items()}


def fed(p: Param, x: Any, names: Sequence[str]) -> dict[str, Any]:
    """A value under the names of the model's inputs; keys and values with heads before tokens."""
    if isinstance(x, PagedCache):
        parts = [t.transpose(1, 2).contiguous() for t in (x.k, x.v) if t.shape[-1]]
        return {name: t.numpy() for name, t in zip(names, parts, strict=True)}
    if isinstance(x, StateCache):
        states = x.states.clone()
        states[[i + 1 for i, past in enumerate(PAST) if not past]] = 0
        return {names[0]: states.numpy()}
    return {p.name: x.numpy()} if isinstance(x, torch.Tensor) else {}


def left(x: Any) -> list[torch.Tensor]:
    """What a body made, as the model leaves it: of a cache the keys of sequences, and nothing behind them."""
    if isinstance(x, PagedCache):
        kept = [(i + 1, (p + n) // x.stride) for i, (p, n) in enumerate(zip(PAST, LENGTHS, strict=True))]
        return [torch.cat([t[s, :n].flatten() for s, n in kept]) for t in (x.k, x.v) if t.shape[-1]]
    if isinstance(x, StateCache):
        return [x.states[1:]]
    return [x]


def check(trial: Trial, folder: Path, style: Style = STYLE) -> None:
    m = alone(trial)
    folder.mkdir()
    found = export(m, RandomCheckpoint(0, {}), folder, style=style)
    inputs = values(m.main.data, different=trial.op.name in SORTS)
    with torch.inference_mode():
        wanted = Interpreter(m)(*inputs)
    cached = any(isinstance(p.type.elem, Cached) for p in m.main.data)
    given: dict[str, Any] = step(PAST if cached else (0, 0, 0))
    for p, x in zip(m.main.data, inputs, strict=True):
        given |= fed(p, x, found.caches.get(p.name, ()))
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(found.path, options, providers=["CPUExecutionProvider"])
    made = session.run(list(found.outputs), {k: v for k, v in given.items() if k in found.inputs})
    results = iter(torch.from_numpy(x) for x in made)
    for value, x in zip(m.main.returns, wanted, strict=True):
        for expected in left(x):
            got = next(results)
            if isinstance(x, PagedCache):
                got = left(replace(x, k=got.transpose(1, 2), v=x.v[..., :0]))[0]
            elif isinstance(x, StateCache):
                got = got[1:]
            got = got.view(expected.dtype) if expected.dtype == torch.float8_e4m3fn else got
            assert got.dtype == expected.dtype, f"{trial}: {value.name} is {got.dtype}"
            close(_plain(got), _plain(expected), trial)


def _plain(x: torch.Tensor) -> torch.Tensor:
    """Eight-bit floats as ones that can be compared."""
    return x.float() if x.dtype == torch.float8_e4m3fn else x


def close(got: torch.Tensor, expected: torch.Tensor, trial: Trial) -> None:
    """Equal, or as far apart as the elements round that the op reads."""
    half = any(
        x.dtype == torch.float16 for x in (expected, *values(alone(trial).main.data)) if torch.is_tensor(x)
    )
    tolerance = 0.0 if not expected.is_floating_point() else 1e-2 if half else 2e-5
    apart: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(got, expected, equal_nan=True, **apart, msg=f"{trial}: {{}}".format)


OWN = [op for op in OPS if "/irloom/ir/ops/" in op.place]
REFUSED = {"all_reduce", "quantize"}
"""What ONNX operators are not written for: a model is that of one rank."""


@pytest.mark.parametrize("op", [o for o in OWN if o.name not in REFUSED], ids=lambda o: o.name)
def test_an_op_as_onnx_gives_what_its_body_gives(op: Op, tmp_path: Path) -> None:
    for i, trial in enumerate(trials(op)):
        check(trial, tmp_path / str(i))


@pytest.mark.parametrize("op", ["attention", "paged_attention"])
def test_attention_as_products(op: str, tmp_path: Path) -> None:
    for i, trial in enumerate(trials(OPS[op])):
        check(trial, tmp_path / str(i), Style(attention="products"))


def test_what_is_refused_is_known_before_an_export(tmp_path: Path) -> None:
    assert {op.name for op in OWN} - expressed() == REFUSED
    m = parse("""# irloom 1
T: dim[1, 64]; mesh(tp=2)

def main(x: partial[tp, f32][T, 8]):
    y = all_reduce(x)
    return y
""")
    with pytest.raises(IRError, match=r"onnx: all_reduce: no ONNX operators compute it"):
        export(m, RandomCheckpoint(0, {}), tmp_path)
