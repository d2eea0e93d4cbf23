"""A pipeline is text, read, checked and run here.

``"canonicalize, fuse-qkv, quantize(int8, skip='lm_head')"``: names of passes, with options in parentheses.
The first options may be given by their place. A word without quotes is a string.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from irloom.ir.errors import PipelineError
from irloom.ir.garbage import uncollected
from irloom.ir.graph import Module, making
from irloom.ir.verify import verify

from .core import Pass
from .guard import broken, check_preserved, preserved, run_guarded
from .order import check_order
from .record import Record, Step
from .registry import PASSES, name_of

Pipeline = str | Sequence[str | Pass]
Progress = Callable[[str, int, int], None]
DEFAULT = "default"


def run_pipeline(m: Module, pipeline: Pipeline, progress: Progress | None = None) -> tuple[Module, Record]:
    """Run ``pipeline`` on a copy of ``m``: the new module, and the record of the run.

    The pipeline is read and checked as a whole before anything runs (``PipelineError``). After every pass the
    program is verified, and a pass that misbehaves is named (see ``guard``); nodes that are new then are made
    by it. ``progress(name, done, total)`` is called before each.
    """
    passes = parse_pipeline(pipeline)
    check_order(passes, m.passes)
    verify(m)
    now = m.copy()
    with uncollected():  # programs hold no cycles, and a record holds many programs
        return now, Record(list(steps(now, passes, progress)))


def steps(now: Module, passes: Sequence[Pass], progress: Progress | None = None) -> Iterator[Step]:
    """Run ``passes`` on ``now`` itself, one at a time: what each was and did."""
    before, kept = now.copy(), list[Pass]()
    for i, p in enumerate(passes):
        name, start = name_of(type(p)), time.perf_counter()
        if progress:
            progress(name, i, len(passes))
        with making(name), _renewing(now, name):
            changes = run_guarded(p, now, before)
        kept = preserved(p, kept)
        check_preserved(p, kept, now)
        kept += [p] if broken(p, now) is None else []
        now.passes.append(name)
        after = now.copy() if changes.places else replace(before, passes=list(now.passes))
        seconds = time.perf_counter() - start
        yield Step(name, spell(p), before, after, changes, seconds, p)
        before = after


@contextmanager
def _renewing(m: Module, name: str) -> Generator[None]:
    """A node to which the pass called ``name`` gives another op is made by it, as a new one is."""
    ops = {n: n.op for f in m.funcs.values() for n in f.nodes}
    yield
    for n, op in ops.items():
        if n.op is not op:
            n.made_by = name


def parse_pipeline(pipeline: Pipeline, default: Sequence[Pass] | None = None) -> list[Pass]:
    """The passes that a pipeline names: text, or a sequence of texts and passes.

    The word ``default`` in it stands for the passes of ``default``, the pipeline of a target.

    >>> [spell(p) for p in parse_pipeline("canonicalize, quantize(int4, skip='lm_head')")]
    ['canonicalize', "quantize('int4', skip=('lm_head',))"]
    """
    items = [pipeline] if isinstance(pipeline, str) else pipeline
    return [p for item in items for p in ([item] if isinstance(item, Pass) else _read(item, default))]


def _read(text: str, default: Sequence[Pass] | None) -> Iterator[Pass]:
    for part in _split(text):
        if part != DEFAULT:
            yield _pass(part)
        elif default is not None:
            yield from default
        else:
            raise PipelineError(
                "pipeline: `default` is the pipeline of a target, and no target is given",
                hint="irloom.driver.passes_of(Choice(target, pipeline)) has one",
            )


def _split(text: str) -> list[str]:
    """Cut at the commas outside of parentheses and quotes."""
    parts: list[str] = []
    depth, quote, start = 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts = [p.strip() for p in [*parts, text[start:]]]
    if depth or quote:
        raise PipelineError(f"pipeline {text!r}: {'a quote' if quote else 'a parenthesis'} is not closed")
    if text.strip() and not all(parts):
        raise PipelineError(
            f"pipeline {text!r}: there is nothing between two commas", hint="names, separated by commas"
        )
    return [p for p in parts if p]


def _pass(text: str) -> Pass:
    """One item, such as ``quantize(int8, group=32)``."""
    m = re.fullmatch(r"([A-Za-z0-9_-]+)\s*(?:\((.*)\))?", text, re.DOTALL)
    if not m:
        raise PipelineError(
            f"pipeline: {text!r} is no pass", hint="a name, or a name with options: kv-plan(page=32)"
        )
    name, given = m[1], m[2] or ""
    cls = PASSES[name]
    try:
        call = cast("ast.Call", ast.parse(f"f({given})", mode="eval").body)
        values = [_value(a) for a in call.args]
        named = {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as e:
        raise PipelineError(
            f"{name}: options {given!r} cannot be read: {e}", hint="values are names, numbers and strings"
        ) from None
    return _build(name, cls, values, named)


def _value(e: ast.expr) -> Any:
    match e:
        case ast.Name(id=word):
            return {"true": True, "false": False, "none": None}.get(word, word)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(x) for x in items)
        case _:
            return ast.literal_eval(e)


def _build(name: str, cls: type[Pass], values: list[Any], named: dict[str, Any]) -> Pass:
    options = [f.name for f in fields(cls)]
    if len(values) > len(options):
        raise PipelineError(f"{name}: {len(values)} options are given, it has {', '.join(options) or 'none'}")
    given = dict(zip(options, values, strict=False))
    for k, v in named.items():
        if k not in options:
            raise PipelineError(f"{name}: no option {k!r}", hint=_instead(cls, k, options))
        if k in given:
            raise PipelineError(f"{name}: option {k!r} is given twice")
        given[k] = v
    hints = get_type_hints(cls)
    for f in fields(cls):
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise PipelineError(
                f"{name}: option {f.name!r} is missing", hint=f"{name}({f.name}=...), {_spell(hints[f.name])}"
            )
    return cls(**{k: _fitted(name, k, v, hints[k]) for k, v in given.items()})


def _instead(cls: type[Pass], option: str, options: list[str]) -> str:
    """What to do where a pass has no such option: most often a typing error, or a decorator forgotten."""
    if option in vars(cls).get("__annotations__", {}):
        return f"{cls.__name__} is no dataclass: put @dataclass(frozen=True) above it"
    if near := get_close_matches(option, options, 1):
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(options)}" if options else "it has none"


def _fitted(name: str, option: str, value: Any, kind: Any) -> Any:
    """``value`` as the option's type, where that loses nothing; else ``PipelineError`` naming both."""
    fitted = _fit(value, kind)
    if fitted is _NO:
        raise PipelineError(f"{name}: option `{option}` is {value!r}, not {_spell(kind)}")
    return fitted


_NO = object()


def _fit(value: Any, kind: Any) -> Any:
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return value if value in args else _NO
    if _either(kind):
        return next((v for k in args if (v := _fit(value, k)) is not _NO), _NO)
    if get_origin(kind) is tuple:
        items = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
        fitted = tuple(_fit(x, args[0]) for x in items)
        return _NO if any(x is _NO for x in fitted) else fitted
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is (NoneType if kind is None else kind) else _NO


def _either(kind: Any) -> bool:
    """Whether a type is one of several; ``Literal["a"] | None`` is of another class than ``int | None``."""
    return isinstance(kind, UnionType) or get_origin(kind) is Union


def _spell(kind: Any) -> str:
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, args))}"
    if _either(kind):
        return " or ".join(map(_spell, args))
    if get_origin(kind) is tuple:
        return f"a tuple of {_spell(args[0]).removeprefix('a ').removeprefix('an ')}s"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", NoneType: "none"}
    return names.get(kind, str(kind))


def spell(p: Pass) -> str:
    """A pass as pipeline text: its name, and the options that are not their defaults."""
    shown: list[str] = []
    for i, f in enumerate(fields(p)):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        value = getattr(p, f.name)
        if default is MISSING or value != default:
            shown.append(repr(value) if i == len(shown) == 0 else f"{f.name}={value!r}")
    return name_of(type(p)) + (f"({', '.join(shown)})" if shown else "")
