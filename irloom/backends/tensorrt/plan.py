"""What decides the bytes of a plan, and what is known of one that was built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from irloom.ir.errors import BuildError

from .network import Network
from .profiles import Profile
from .structure import Structure

Held = Literal["refit", "inputs"]
"""How a plan comes to its weights; it never holds them. ``refit``: it is stripped of them when it is built,
and refitted when it is opened. ``inputs``: they are inputs of its network, and their addresses are given.
"""


@dataclass(frozen=True)
class Builder:
    """What builds: a library of a version, for a GPU, or for every GPU that the library targets.

    ``gpu`` is None where plans are for any GPU of the compute capabilities ``targets``.
    """

    library: str
    version: str
    gpu: str | None
    targets: tuple[str, ...]
    held: Held


@dataclass(frozen=True)
class Recipe:
    """A network of one structure, its profiles, and what builds it: the same recipe makes the same plan."""

    network: Network
    text: str
    profiles: tuple[Profile, ...]
    builder: Builder

    @classmethod
    def of(cls, net: Network, profiles: Sequence[Profile], builder: Builder) -> tuple[Recipe, dict[str, str]]:
        """The recipe of a network, and its names for what the plan calls ``in0``, ``w0``, ``out0``, ..."""
        made = Structure.of(net)
        plan = made.network
        if builder.held == "inputs":
            plan = replace(plan, inputs=[*plan.inputs, *plan.weights], weights=[])
        return cls(plan, made.text, tuple(profiles), builder), made.names

    @property
    def key(self) -> str:
        """A name for the plan that nothing else has."""
        facts = [self.text, [p.to_json() for p in self.profiles], asdict(self.builder), _emitting()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Built:
    """A plan that was built: where it is, its SHA-256 and bytes, and the seconds that it took, those on the
    clock and those of all threads. They are 0 where it was found in the cache.
    """

    plan: Path
    log: Path
    sha256: str
    bytes: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def read(self) -> bytes:
        """The plan; ``BuildError`` where its file is not what was built."""
        data = self.plan.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BuildError(f"{self.plan} was changed since it was built", hint="build again")
        return data


@cache
def _emitting() -> str:
    """A hash of the code that turns a network into calls of the builder."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here / "layers").glob("*.py")])
    kept = [f for f in files if f.parent.name == "layers" or f.stem in ("builder", "emitter", "network")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in kept)).hexdigest()
