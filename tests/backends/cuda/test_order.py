"""What every kernel owes those around it: it is launched before the one in front has ended.

One that has ended without waiting lets the kernel behind it go on while the one in front still writes. So
every kernel waits, whatever there is for a program to do, before it writes. And it waits before it reads what
a kernel may have written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from irloom.backends.cuda import kernels
from irloom.backends.cuda.kernels.elementwise import Source

WRITES = "store", "atomic"
"""In the names of what writes: of Triton, of its descriptors and of what copies boxes."""
INSIDE = {"few": "a program that has keys waits while its first ones are on their way, then writes"}
ALONE = {"sha256_pieces": "launched as kernels usually are, on a stream of its own"}
WEIGHTS = {"bias", "blocks", "inner", "matrix", "norm", "pairs", "router", "scales", "weight", "words"}
WEIGHTS |= {"w", "w_scales", "zeros"}
ARRIVED = {"context", "seqs", "starts"}
"""Arrays of a step: nothing else starts before they are there."""
NUMBERS = {"K", "N", "T", "count", "first", "rows", "scale_group", "scale_row", "share", "split"}
NUMBERS |= {"w_row", "w_scale_row"}
EARLIER = {"gather:_sum": {"index"}}
"""What the kernel in front has waited for before it let this one start."""
OF_GROUPS = {"ring_kernel", "prefill_groups", "decode_groups"}
"""Kernels whose groups of warps wait each by itself: their own tests look at what they compile to."""


def functions_of(tree: ast.Module) -> list[ast.FunctionDef]:
    """Those at the top."""
    return [f for f in tree.body if isinstance(f, ast.FunctionDef)]


MADE = {"made": functions_of(ast.parse(str(Source("x0 * x1", ("1s", "1s", "-s")))))[0]}
"""What is launched by a name that is no function's: text that is written as it is needed."""


@cache
def launched() -> dict[str, ast.FunctionDef]:
    """Whatever is launched, by file and name."""
    trees = {
        file.stem: ast.parse(file.read_text()) for file in sorted(Path(kernels.__path__[0]).glob("*.py"))
    }
    functions = {(stem, f.name): f for stem, tree in trees.items() for f in functions_of(tree)}
    found: dict[str, ast.FunctionDef] = {}
    for stem, tree in trees.items():
        brought = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        home = {a.name: node.module or "" for node in brought for a in node.names}
        for name, launch in subscripted(tree):
            f = MADE.get(name) or functions.get((home.get(name, stem), name))
            assert f or not launch.keywords, f"what {stem} launches as {name} is not known here"
            if f is not None:
                found[f"{stem}:{name}"] = f
    return found


def subscripted(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Calls as launches are, ``kernel[grid](..., **options())``, and the names before the brackets."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript):
            yield ast.unparse(call.func.value), call


def test_all_that_is_launched_is_looked_at() -> None:
    """It takes ``CHAIN``, which ``options`` gives, and what it does with that is seen here or elsewhere."""
    assert len(launched()) > 50
    alone = {f.name for f in launched().values() if "CHAIN" not in [a.arg for a in f.args.args]}
    assert alone == ALONE.keys()
    groups = {f.name for f in launched().values() if "gl.warp_specialize" in ast.unparse(f)}
    assert groups == OF_GROUPS


@pytest.mark.parametrize("name", [x for x, f in launched().items() if f.name not in {*OF_GROUPS, *ALONE}])
def test_it_waits_before_it_writes_or_ends(name: str) -> None:
    f = launched()[name]
    waits = [i for i, line in enumerate(f.body) if ast.unparse(line) == "wait(CHAIN)"]
    assert waits, "not where every program comes by"
    before = [node for line in f.body[: waits[0]] for node in ast.walk(line)]
    assert not any(isinstance(node, ast.Return) for node in before)
    calls = [ast.unparse(node.func) for node in before if isinstance(node, ast.Call)]
    assert f.name in INSIDE or not [call for call in calls if any(word in call for word in WRITES)]


@pytest.mark.parametrize("name", [x for x, f in launched().items() if f.name not in {*OF_GROUPS, *ALONE}])
def test_it_waits_before_it_reads_what_is_not_always_there(name: str) -> None:
    f = launched()[name]
    if f.name not in INSIDE:
        assert read_early(f) <= WEIGHTS | ARRIVED | NUMBERS | EARLIER.get(name, set())


def test_what_is_read_early_is_seen() -> None:
    """Also where it goes by another name, or into a function that reads it."""
    lines = "both, i = (x, n), tl.arange(0, n)", "read(both)", "tl.load(y + i)", "wait(CHAIN)", "tl.load(z)"
    text = "\n    ".join(["def f(x, y, z, n):", *lines])
    assert read_early(functions_of(ast.parse(text))[0]) == {"n", "x", "y"}


def read_early(f: ast.FunctionDef) -> set[str]:
    """Parameters that are read before the kernel waits, or given to what may read them."""
    of = {a.arg: {a.arg} for a in f.args.args if a.annotation is None}
    read = set[str]()

    def named(node: ast.AST) -> set[str]:
        return {p for n in ast.walk(node) if isinstance(n, ast.Name) for p in of.get(n.id, ())}

    for line in f.body:
        if ast.unparse(line) == "wait(CHAIN)":
            break
        for call in (node for node in ast.walk(line) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name == "tl.load" or not name.startswith("tl."):
                read |= {p for x in (*call.args, *(k.value for k in call.keywords)) for p in named(x)}
        if isinstance(line, ast.Assign):
            target, value = line.targets[0], line.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                of |= {ast.unparse(t): named(v) for t, v in zip(target.elts, value.elts, strict=True)}
            else:
                of[ast.unparse(target)] = named(value)
    return read


def test_nothing_starts_before_a_step_has_arrived() -> None:
    """Kernels for few sequences read page tables and keys before they wait: behind this one they may."""
    assert "go_on" not in ast.unparse(launched()["exchange:_arrive"])
    assert any("go_on" in ast.unparse(f) for f in launched().values())
