"""The file of results of ``gpu.py``: written again with every figure, so that what is measured stays."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from report import machine
from works import LESS, WORKS, Work

if TYPE_CHECKING:
    from irloom.ir.device import Device

WRITING = Lock()
VERSIONS = ("irloom", "torch", "triton", "transformers", "vllm")


@dataclass(frozen=True)
class Kept:
    """``rows`` is what is rendered; ``measured`` has every sample of each row and contender."""

    path: Path
    results: dict[str, Any]

    @staticmethod
    def today(folder: Path, card: Device | None) -> Kept:
        """The results of this day: a row of an earlier call stays until it is measured again."""
        from irloom.driver.peers.energy import driver

        day = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        path = folder / f"cuda-{day}.json"
        before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        facts = {"date": day, "versions": versions(), "machine": machine(), "driver": driver()}
        facts["card"] = asdict(card) if card else before.get("card")
        return Kept(path, {"rows": {}, "measured": {}} | before | facts)

    def begin(self, name: str, work: Work) -> None:
        """A row without figures."""
        self.results["measured"][name] = {}
        self.results["rows"][name] = {
            "title": work.title,
            "unit": work.unit,
            "more_is_better": work.figure not in LESS,
            "goal": work.goal,
            "failed": "not measured",
            "roofline_share": None,
            "joules_per_token": None,
            "peers": {},
            "left_out": {},
        }

    def own(self, name: str, value: float, found: dict[str, Any] | None = None) -> None:
        """Irloom's figure."""
        row, found = self.results["rows"][name], found or {}
        row.pop("failed", None)
        row |= {"value": value, "joules_per_token": found.get("joules_per_token")}
        row["roofline_share"] = WORKS[name].share(value, found.get("bounds"))
        self._write(name, "irloom", found)

    def peer(self, name: str, about: str, value: float, found: dict[str, Any], text: str = "") -> None:
        """The figure of a peer, by what it says it is; as ``text`` it may have been left out before."""
        self.results["rows"][name]["peers"][about] = value
        self.results["rows"][name]["left_out"].pop(text, None)
        self._write(name, about, found)

    def leave_out(self, name: str, text: str, reason: str) -> None:
        """A contender that has no figure here."""
        if text == "irloom":
            self.fail(name, reason)
            return
        self.results["rows"][name]["left_out"][text] = reason
        self._write(name, text, {"left out": reason})

    def fail(self, name: str, reason: str) -> None:
        """Why irloom has no figure here."""
        self.results["rows"][name]["failed"] = reason
        self._write(name, "irloom", {"failed": reason})

    def _write(self, name: str, who: str, found: dict[str, Any]) -> None:
        part = self.path.with_suffix(".part")
        with WRITING:
            self.results["measured"][name][who] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.results, indent=2) + "\n")
            part.replace(self.path)


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
