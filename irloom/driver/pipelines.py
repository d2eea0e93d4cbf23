"""Which passes run: a target's own, those of plugins that join them, and what the user changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from irloom.backends.core import backend, backends
from irloom.ir.errors import IrloomError, PipelineError
from irloom.passes import PASSES, Pass, check_order, name_of, parse_pipeline, place
from irloom.passes.pipeline import Pipeline


@dataclass(frozen=True)
class Choice:
    """What the user says of a pipeline; every command that runs passes takes one.

    ``pipeline`` is the whole of it, where the word ``default`` stands for the pipeline of ``target``; None is
    ``"default"``. ``without`` are names of passes to leave out, and ``with_`` texts of passes to put where
    their order allows it; one that is there already stays where it is and gets these options.
    """

    target: str = "cpu"
    pipeline: Pipeline | None = None
    with_: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is the target's own pipeline that is chosen."""
        return self.pipeline is None and not self.with_ and not self.without

    def here(self) -> Choice:
        """The choice with a target that this machine can build for (see ``available``)."""
        return replace(self, target=available(self.target))


CHOICE = Choice()
"""What runs when nothing is said: the CPU's own pipeline."""


def passes_of(choice: Choice) -> list[Pass]:
    """The passes to run, in order; ``PipelineError`` where a name, an option or the order is wrong."""
    text = "default" if choice.pipeline is None else choice.pipeline
    own = own_passes(choice.target)
    named = _names(parse_pipeline(text, default=()))
    joins = [p for p in joining(choice.target) if name_of(type(p)) not in named]
    _check_without(choice, parse_pipeline(text, default=[*own, *joins]))
    default = place(_left(own, choice), _left(joins, choice))
    passes = _with(_left(parse_pipeline(text, default), choice), choice)
    check_order(passes)
    return passes


def own_passes(target: str) -> list[Pass]:
    """The default pipeline of ``target``, as its backend says it."""
    return parse_pipeline(backend(target).pipeline)


def until(passes: list[Pass], stage: str | None) -> list[Pass]:
    """``passes`` up to a stage, itself included: all for None, none for ``"trace"``.

    A stage is a name, which means the last run of that pass; ``canonicalize:1`` is the first run of it, and
    ``3`` the third pass, whichever that is.
    """
    if stage is None or stage == "trace":
        return passes if stage is None else []
    if stage.isdecimal():
        if int(stage) > len(passes):
            raise PipelineError(f"no stage {stage}: the pipeline has {len(passes)} passes")
        return passes[: int(stage)]
    name, _, run = stage.partition(":")
    names = _names(passes)
    ends = [i for i, other in enumerate(names, 1) if other == name]
    if not ends:
        has = f"it has {', '.join(dict.fromkeys(names))}, and trace"
        hint = f"--with {name} adds it; {has}" if name in PASSES else has
        raise PipelineError(f"the pipeline has no pass {name!r}", hint=hint)
    if run and not (run.isdecimal() and 0 < int(run) <= len(ends)):
        times = f"{len(ends)} times" if len(ends) > 1 else "once"
        raise PipelineError(
            f"no stage {stage!r}: {name} runs {times}", hint=f"{name}:1 is after its first run"
        )
    return passes[: ends[int(run) - 1 if run else -1]]


def joining(target: str) -> list[Pass]:
    """Passes of plugins that join the default pipeline of ``target`` by themselves, by name."""
    plugins = sorted(PASSES.plugins().items())
    return [parse_pipeline(name)[0] for name, cls in plugins if target in cls.targets]


def targets() -> dict[str, str | None]:
    """Each target and what it lacks on this machine, be it that it loads; None when it is ready."""
    return {name: _lacks(name) for name in backends()}


def _lacks(name: str) -> str | None:
    try:
        return backend(name).lacks()
    except IrloomError as error:
        return error.message


def available(target: str) -> str:
    """``target``; in place of ``cpu`` on a machine without a C++ compiler, ``reference``: torch, and slow."""
    return "reference" if target == "cpu" and backend(target).lacks() else target


def _names(passes: Sequence[Pass]) -> list[str]:
    return [name_of(type(p)) for p in passes]


def _left(passes: Sequence[Pass], choice: Choice) -> list[Pass]:
    return [p for p in passes if name_of(type(p)) not in choice.without]


def _check_without(choice: Choice, passes: Sequence[Pass]) -> None:
    names = _names(passes)
    for name in choice.without:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise PipelineError(
                f"the pipeline for {choice.target} has no pass {name!r} to leave out",
                hint=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(dict.fromkeys(names))}",
            )


def _with(passes: list[Pass], choice: Choice) -> list[Pass]:
    """``passes`` with those that are asked for: in place of namesakes, or where their order puts them."""
    asked = {name_of(type(p)): p for text in choice.with_ for p in parse_pipeline(text)}
    there = _names(passes)
    changed = [asked.get(name, p) for name, p in zip(there, passes, strict=True)]
    return place(changed, [p for name, p in asked.items() if name not in there])
