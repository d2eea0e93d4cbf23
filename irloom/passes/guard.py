"""Run one pass and believe nothing: what it raises, returns, leaves behind and undoes is checked."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from irloom.ir.errors import IRError, IrloomError, PipelineError
from irloom.ir.graph import Module
from irloom.ir.verify import verify

from .core import Changes, Pass, limited
from .registry import name_of

RULES = ("rewrite", "rewrite_pass", "pattern", "draft", "guard")
FRAMEWORK = [Path(__file__).with_name(f"{name}.py") for name in RULES]
"""Files beside irloom's own passes whose lines say nothing about a pass."""


def run_guarded(p: Pass, m: Module, before: Module) -> Changes:
    """Run ``p`` on ``m``, which ``before`` is a copy of, and verify what it leaves.

    ``PipelineError`` when it raises something else than an irloom error, does not return ``Changes``, or
    says that nothing changed where something did. ``IRError`` when the program is malformed, with the first
    change after which it is.
    """
    name = name_of(type(p))
    try:
        changes: Any = p.run(m)
    except PipelineError:  # about the pass's own options: it names itself
        raise
    except IrloomError as e:
        raise e.at(f"  --> in pass {name}") from None
    except (Exception, SystemExit) as e:
        raise _raised(p, f"pass {name}", e) from e
    if not isinstance(changes, Changes):
        raise PipelineError(
            f"pass {name} returned {_shown(changes)}, not Changes", hint="return what `apply` gives: Changes"
        ).at(f"  --> {_place(p)}")
    if not changes.places and m == before:
        return changes
    try:
        verify(m)
    except IRError as e:
        raise _blamed(e, p, before, len(changes)).at(f"  --> after pass {name}") from None
    except Exception as e:
        raise PipelineError(
            f"pass {name} left what is no program: {type(e).__name__}: {e}",
            hint="operands are values, numbers and None; results are values; attributes are plain",
        ).at(f"  --> {_place(p)}") from e
    if not changes.places:
        raise PipelineError(
            f"pass {name} says that it changed nothing, but {_difference(before, m)}",
            hint="count every change: Changes([place, ...])",
        ).at(f"  --> {_place(p)}")
    return changes


def check_preserved(p: Pass, earlier: Sequence[Pass], m: Module) -> None:
    """Refuse that ``p``, which just ran, undid what one of ``earlier`` did and ``p`` says it preserves."""
    name = name_of(type(p))
    for other in earlier:
        why = broken(other, m)
        if why is not None:
            undone = name_of(type(other))
            raise PipelineError(
                f"pass {name} undoes {undone}, which it says it preserves: {why}",
                hint=f'preserves = ("*", "-{undone}") says that it does',
            ).at(f"  --> {_place(p)}")


def broken(p: Pass, m: Module) -> str | None:
    """``p.holds(m)``, which is the author's code as ``run`` is."""
    try:
        return p.holds(m)
    except Exception as e:
        raise _raised(p, f"{name_of(type(p))}.holds", e) from e


def preserved(p: Pass, earlier: Sequence[Pass]) -> list[Pass]:
    """Those of ``earlier`` whose work ``p`` says it keeps."""
    return [q for q in earlier if p.keeps(name_of(type(q)))]


def _raised(p: Pass, what: str, e: Exception | SystemExit) -> PipelineError:
    """What a person needs of an exception: what it says, the line of the pass, and the rule at work."""
    said = f": {e}" if str(e) else ""
    error = PipelineError(
        f"{what} raised {type(e).__name__}{said}", hint="`irloom --debug` shows the traceback"
    )
    for note in getattr(e, "__notes__", []):
        error.at(note)
    return error.at(f"  --> {_line(p, e)}")


def _line(p: Pass, e: BaseException) -> str:
    """The innermost line of the pass's own code, which may lie in files beside the pass's own."""
    folder = Path(type(p).run.__code__.co_filename).parent
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if folder in Path(f.filename).parents and Path(f.filename) not in FRAMEWORK]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"


def _place(p: Pass) -> str:
    """Where the pass's ``run`` is written."""
    code = type(p).run.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _shown(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 40 else f"a {type(x).__name__}"


def _blamed(e: IrloomError, p: Pass, before: Module, changes: int) -> IrloomError:
    """``e`` with the change that broke the program: the last of the fewest after which it is malformed."""
    if not changes or _breaks(p, before, 0) is not None:
        return e
    good, bad = 0, changes
    while bad - good > 1:
        half = (good + bad) // 2
        broken = _breaks(p, before, half)
        good, bad = (good, half) if broken is not None else (half, bad)
    last = _breaks(p, before, bad)
    return e.at(f"  --> {last}") if last else e


def _breaks(p: Pass, before: Module, fuel: int) -> str | None:
    """The last of the first ``fuel`` changes of ``p``, if they leave a malformed program; None if not."""
    m = before.copy()
    with limited(fuel):
        try:
            changes = p.run(m)
        except Exception:
            return None
    try:
        verify(m)
    except IRError:
        return changes.places[-1] if changes.places else ""
    return None


def _difference(before: Module, after: Module) -> str:
    """The first thing in which two modules differ, for a message."""
    if list(before.funcs) != list(after.funcs):
        return f"its functions were {', '.join(before.funcs)} and are {', '.join(after.funcs)}"
    for name, f in before.funcs.items():
        old, new = str(f).splitlines(), str(after.funcs[name]).splitlines()
        pairs = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
        if pairs:
            a, b = (line.strip() for line in pairs[0])
            return f"in {name} `{a}` became `{b}`"
        if len(old) != len(new):
            return f"{name} has {len(new)} lines, it had {len(old)}"
    return "the module's header is another"
