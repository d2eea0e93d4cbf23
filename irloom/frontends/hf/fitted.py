"""Directories whose weights and tokenizer were found to fit: the library is not imported to find that again.

What is kept says of each of the model's tensors which expression of the file's it is. It is kept under all
that it follows from: the config, the names, dims and elements in the files, the versions of the library and
of irloom. It is not kept where values decide too, or code of the library converts.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.checkpoint import load_tokenizer, open_checkpoint, open_raw, read_config
from irloom.frontends.hf.recipes import Expressed, MappedCheckpoint
from irloom.frontends.hf.remote import code_key
from irloom.frontends.store import digest, keep, kept
from irloom.ir.checkpoint import Checkpoint, SafetensorsCheckpoint
from irloom.ir.errors import IRError
from irloom.ir.weight_expr import parse_weight, show_weight

TOKENIZER = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
"""Files that a tokenizer may be made of."""


def fitted(path: Path, options: TraceOptions) -> MappedCheckpoint:
    """The weights of a directory under the names of its model; ``CheckpointError`` says what does not fit."""
    raw = open_raw(path)
    if not isinstance(raw, SafetensorsCheckpoint) or not (path / "config.json").is_file():
        return _asked(path, options)
    facts = _facts(path, options, raw)
    with suppress(ValueError, SyntaxError, IRError):  # a damaged file is made again
        if (text := kept("fits", facts)) is not None:
            said = json.loads(text)
            recipes = {n: Expressed(parse_weight(ast.parse(e, mode="eval").body)) for n, e, _ in said}
            return MappedCheckpoint(raw, recipes, {name: tuple(dims) for name, _, dims in said})
    made = _asked(path, options)
    if (spelled := _spelled(made)) is not None:
        keep("fits", facts, json.dumps(spelled))
    return made


def check_tokenizer(path: Path) -> None:
    """Load a directory's tokenizer, unless these very files were loaded before; ``CheckpointError``."""
    files = sorted(file for pattern in TOKENIZER for file in path.glob(pattern))
    facts = [*(file.name for file in files), digest(files)]
    if kept("tokenizers", facts) is None:
        load_tokenizer(path)
        keep("tokenizers", facts, "loads")


def _asked(path: Path, options: TraceOptions) -> MappedCheckpoint:
    """The same, as the library's model and its conversions have it."""
    from irloom.frontends.hf.skeleton import skeleton
    from irloom.frontends.hf.tiny import with_layers
    from irloom.frontends.hf.trace import model_dtype

    config = read_config(path, options.trust)
    some = config if options.layers is None else with_layers(config, options.layers)
    model = skeleton(some, model_dtype(config, options))
    return open_checkpoint(path, model, some, whole=options.layers is None)


def _facts(path: Path, options: TraceOptions, raw: Checkpoint) -> Sequence[str]:
    config = (path / "config.json").read_text(encoding="utf-8", errors="replace")
    tensors = [(name, raw.dims(name), str(raw.elem(name))) for name in raw.names()]
    return [config, code_key(path, options.trust), repr(options), json.dumps(tensors)]


def _spelled(made: MappedCheckpoint) -> list[tuple[str, str, tuple[int, ...]]] | None:
    """Each tensor, its expression and its dims; None where those say not all.

    A tensor of the file that nothing reads may be one that was compared with another that is tied to it.
    """
    expressed = {n: r for n, r in made.recipes.items() if isinstance(r, Expressed)}
    used = {source for r in expressed.values() for source in r.sources}
    if not isinstance(made.raw, SafetensorsCheckpoint) or len(expressed) < len(made.recipes):
        return None
    if used != set(made.raw.names()):
        return None
    return [(name, show_weight(r.expr), made.dims(name)) for name, r in expressed.items()]
