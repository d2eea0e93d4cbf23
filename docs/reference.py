"""Write ``docs/ops.md`` and ``docs/passes.md`` from the docstrings of ops and passes.

``python docs/reference.py`` writes both pages; ``--check`` says whether it would change one. What a pass does
is shown by the first program of its Markdown tests, which are run: before and after.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OPS_PAGE, PASSES_PAGE = ROOT / "docs" / "ops.md", ROOT / "docs" / "passes.md"
GENERATED = "<!-- Made from docstrings by `make docs`: edit those. -->\n\n"


def main() -> int:
    """Write the pages, or with ``--check`` return 1 where one is out of date."""
    made = {OPS_PAGE: ops(), PASSES_PAGE: passes()}
    if "--check" in sys.argv:
        return int(any(not page.exists() or page.read_text() != text for page, text in made.items()))
    for page, text in made.items():
        page.write_text(text)
    return 0


def ops() -> str:
    """What signatures mean, then a section per module of ``irloom.ir.ops`` with its ops."""
    from irloom.ir import signature
    from irloom.ir.op import OPS, Op

    families: dict[str, list[Op]] = {}
    for o in _own(OPS):
        families.setdefault(o.place.rpartition(":")[0], []).append(o)
    intro = (
        "One function is one op: its parameters are operands and attributes, its body is what it means, its\n"
        "signature relates the dims. `irloom op NAME` prints a part of this page.\n"
    )
    rows = [
        f"- {_sentence(Path(file))} {', '.join(f'`{o.name}`' for o in f)}" for file, f in families.items()
    ]
    head = [f"# Ops\n\n{GENERATED}{intro}", "\n".join(rows) + "\n"]
    signs = f"## Signatures\n\n{_markdown(inspect.cleandoc(signature.__doc__ or ''))}\n"
    return "\n".join([*head, signs, *(_family(Path(file), members) for file, members in families.items())])


def _own(registry: Any) -> list[Any]:
    """Irloom's own ops in the order of their definition, a recurrent op for its carried twin, too."""
    import_module("irloom.ir.ops")  # defines them
    carried = [o.carried for o in registry if o.carried]
    return [o for o in registry if f"{Path('irloom', 'ir', 'ops')}/" in o.place and o not in carried]


def _family(file: Path, members: list[Any]) -> str:
    """Ops whose page is one line in a table, the others in sections of their own."""
    first, _, rest = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")
    short = [o for o in members if not o.attrs and not o.carried and "\n" not in o.doc]
    rows = [
        f"| `{o.name}({', '.join(o.operands)})` | `{o.signature.text}` | {_markdown(o.doc)} |" for o in short
    ]
    table = "\n".join(["| op | signature | |", "|---|---|---|", *rows]) if short else ""
    heading = f"## {_markdown(first).replace(chr(10), ' ').rstrip('.')}"
    sections = [_op(o) for o in members if o not in short]
    return "\n\n".join(filter(None, [heading, _markdown(rest), table, *sections])) + "\n"


def _op(o: Any) -> str:
    *ins, _ = o.signature.text.replace("->", ",").split(",")
    given = [*zip(o.operands, ins, strict=False)]
    operands = ", ".join(f"`{name}` `{dims.strip()}`" for name, dims in given)
    attributes = ", ".join(f"`{name}: {_attribute(o, name)}`" for name in o.attrs)
    facts = [
        f"- operands: {operands}" if given else "",
        f"- attributes: {attributes}" if o.attrs else "",
        f"- with a state from step to step: `{o.carried.name}`, `{o.carried.signature.text}`"
        if o.carried
        else "",
    ]
    head = f"### {o.name}\n\n`{o.signature.text}`"
    return "\n\n".join(filter(None, [head, _markdown(o.doc), "\n".join(filter(None, facts))]))


def _attribute(o: Any, name: str) -> str:
    parameter = inspect.signature(o.reference).parameters.get(name)
    if parameter is None:  # a recurrent op: its body takes all attributes at once
        return f"{type(o.attrs[name]).__name__} = {o.attrs[name]!r}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.annotation}{default}"


def passes() -> str:
    """The pipelines of the targets, then a section per pass, in the order in which it runs."""
    from irloom.backends.core import BUILT_IN, backend
    from irloom.passes import PASSES

    pipelines = {name: backend(name).pipeline for name in BUILT_IN}
    order = [*dict.fromkeys(p.partition("(")[0] for p in pipelines["cpu"])]
    names = [*order, *sorted(n for n in PASSES if n not in order)]
    intro = (
        "A pipeline is a list of passes, as text: `canonicalize, raise, fuse-mlp, quantize(int8)`. Each\n"
        "takes a program and leaves a program; the verifier runs after each. `irloom passes` lists what\n"
        "a machine has, `irloom pass NAME` prints a part of this page, and\n"
        "[from_scratch.md](from_scratch.md) writes one.\n"
    )
    targets = "\n\n".join(f"The pipeline of `{t}`: {_linked(steps)}." for t, steps in pipelines.items())
    head = f"# Passes\n\n{GENERATED}{intro}\n{targets}\n"
    own = [n for n in names if PASSES[n].__module__.startswith("irloom.passes")]
    return "\n".join([head, *(_pass(name, PASSES[name]) for name in own)])


def _linked(steps: Any) -> str:
    return ", ".join(f"[`{s}`](#{s.partition('(')[0]})" for s in steps)


def _pass(name: str, cls: type) -> str:
    module = inspect.getmodule(cls)
    assert module is not None, cls
    texts = [inspect.cleandoc(t.__doc__ or "") for t in (module, cls)]
    constraints = [
        f"- {word}: {', '.join('all others' if n == '*' else f'[`{n}`](#{n})' for n in getattr(cls, word))}"
        for word in ("after", "before", "requires")
        if getattr(cls, word)
    ]
    listed = [f"- `{f.name}: {_option(f)}`" for f in fields(cls)]
    facts = [
        "Options:\n\n" + "\n".join(listed) if listed else "",
        "In a pipeline:\n\n" + "\n".join(constraints) if constraints else "",
    ]
    return (
        "\n\n".join(
            [f"## {name}", *map(_markdown, filter(None, texts)), *filter(None, facts), *_example(name)]
        )
        + "\n"
    )


def _option(f: Field[Any]) -> str:
    kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
    if f.default is not MISSING:
        return f"{kind} = {f.default!r}"
    return f"{kind} = {f.default_factory()!r}" if f.default_factory is not MISSING else f"{kind}, required"


def _example(name: str) -> list[str]:
    """The first program of the pass's tests and what becomes of it, with a link to all of them."""
    tests = ROOT / "tests" / "passes" / f"{name}.md"
    if not tests.exists():
        return []
    found = re.search(r"```py\n(.*?)```\n(.*?)```py ([^\n]*)\n(.*?)```", tests.read_text(), re.DOTALL)
    if not found:
        return []
    before, _, pipeline, after = found.groups()
    link = f"[tests/passes/{name}.md](../tests/passes/{name}.md)"
    return [f"From {link}:", f"```python\n{before}```", f"`{pipeline}` makes of it", f"```python\n{after}```"]


def _sentence(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    return _markdown(doc.partition("\n\n")[0].replace("\n", " "))


def _markdown(doc: str) -> str:
    """A docstring as Markdown: its code marks, and examples in fences."""
    text = re.sub(r"``(.+?)``", r"`\1`", doc, flags=re.DOTALL)
    return re.sub(r"((?:^>>> .*\n?(?:^(?!>>>|$).*\n?)*)+)", r"```python\n\1\n```\n", text, flags=re.M).strip()


if __name__ == "__main__":
    sys.exit(main())
