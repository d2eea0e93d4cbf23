"""The adapter for Model Explorer: ``model-explorer program.irloom --extensions=irloom.export.explorer``.

Its interface, and the name of this file, are those of the package ``ai-edge-model-explorer``, which registers
the class when it is made.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irloom.ir.files import read_text
from irloom.ir.parse import parse

from . import graphs


def adapter() -> type[Any]:
    """The adapter's class; it reads the text of a program, as ``irloom dump`` prints it."""
    explorer = import_module("model_explorer")
    from_dict = import_module("dacite").from_dict

    class IrloomAdapter(explorer.Adapter):
        metadata = explorer.AdapterMetadata(
            id="irloom", name="irloom", description="Programs of irloom as text", fileExts=["irloom"]
        )

        def convert(self, model_path: str, settings: dict[str, Any]) -> dict[str, Any]:
            m = parse(read_text(Path(model_path)))
            made = graphs(m, list(m.funcs.values()))
            return {"graphs": [from_dict(explorer.graph_builder.Graph, g) for g in made]}

    return IrloomAdapter


if find_spec("model_explorer") is not None:
    adapter()
