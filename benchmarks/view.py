"""How large the pages of `irloom view` are, and how quickly they open in Chromium.

    python benchmarks/view.py --json view.json

The demo model, configs of published sizes, a flat chain of ten thousand nodes without module paths.
README.md here says how to read the table.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from trace import MODELS
from typing import Any

from report import cell, machine, print_table, say, write_json

import irloom
from irloom.driver import Choice, passes_of
from irloom.ir.device import device
from irloom.viewer import Settings, document, render
from irloom.viewer.html import to_json

DEMO = ".demo/gemma-3-270m-q4_k_m.gguf"
HEADS = [
    "", "nodes", "data MB", "file MB", "made s", "first paint", "graph", "traced", "open", "close", "split",
]  # fmt: skip


def main() -> None:
    args = arguments()
    programs: dict[str, Callable[[], Any]] = {
        "demo model": lambda: record(args.model),
        "Llama 3 70B": lambda: record(config("Llama 3 70B")),
        "DeepSeek V3": lambda: record(config("DeepSeek V3")),
        "10,000 nodes": chain,
    }
    say(f"load average {machine()['load']:.1f}; goals: 15 MB for an 8B model, 2 s to open 10,000 nodes\n")
    figures: dict[str, Any] = {"machine": machine(), "pages": {}}
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for name in args.only or programs:
            path = Path(tmp) / "page.html"
            found = made(programs[name](), path)
            found |= opened(path, args.repeats)
            figures["pages"][name] = found
            rows.append(row(name, found))
            say(f"  {name} done")
    say("")
    print_table([HEADS, *rows])
    write_json(args.json, figures)


def record(model: Any) -> Any:
    """A model traced and taken through the CPU's pipeline."""
    return irloom.run_pipeline(irloom.trace(model), passes_of(Choice()))[1]


def config(name: str) -> Any:
    """A config of published sizes."""
    import transformers

    cls, settings = MODELS[name]
    return getattr(transformers, cls)(**settings)


def chain(nodes: int = 10_000) -> Any:
    """So many additions in a row."""
    rows = "".join(f"    x{i + 1} = add(x{i}, 1.0)\n" for i in range(nodes))
    return irloom.parse(f"def main(x0: f32[T, 8]):\n{rows}    return x{nodes}\n")


def made(what: Any, path: Path) -> dict[str, Any]:
    """Write the page: its sizes, and the seconds it took."""
    start = time.perf_counter()
    data = document(what, Settings(device=device("h200")))
    text = render(data)
    path.write_text(text, "utf-8")
    return {
        "nodes": data["states"][0]["nodes"],
        "data_bytes": len(to_json(data).encode()),
        "file_bytes": path.stat().st_size,
        "seconds": time.perf_counter() - start,
    }


def opened(path: Path, repeats: int) -> dict[str, list[float]]:
    """Open the page in a fresh browser each time; milliseconds of what a reader waits for."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with sync_playwright() as driver:
        for n in range(repeats + 1):
            browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1600, "height": 950})
            page.goto(path.as_uri())
            for key, value in page.evaluate(WAITS).items():
                if n and value is not None:
                    found.setdefault(key, []).append(value)
            browser.close()
    return found


WAITS = """async () => {
  const timed = async (act) => {
    const start = performance.now();
    act();
    await irloom.settled();
    await new Promise(requestAnimationFrame);
    return performance.now() - start;
  };
  await irloom.settled();
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  const [ready] = performance.getEntriesByName("irloom-ready");
  const { passes } = irloom.state();
  const traced = passes ? await timed(() => irloom.clicks.pass(0)) : null;
  const closed = irloom.state().boxes.filter((box) => box.open === false);
  const toggle = () => irloom.clicks.toggle(closed[closed.length >> 1].key);
  const open = closed.length ? await timed(toggle) : null;
  const close = closed.length ? await timed(toggle) : null;
  const split = passes ? await timed(() => { irloom.clicks.pass(1); irloom.actions.split(); }) : null;
  return { paint: paint.startTime, ready: ready.startTime, traced, open, close, split };
}"""


def chromium() -> str:
    """An installed browser."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no chromium on PATH; on Debian: apt-get install chromium")
    return found


def row(name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table; its columns are ``HEADS``."""
    sizes = [
        f"{found['nodes']:,}",
        cell(found["data_bytes"] / 1e6, "{:.2f}"),
        cell(found["file_bytes"] / 1e6),
    ]
    waits = [found.get(key) for key in ("paint", "ready", "traced", "open", "close", "split")]
    medians = [cell(statistics.median(x) if x else None, "{:,.0f} ms") for x in waits]
    return [name, *sizes, cell(found["seconds"]), *medians]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=DEMO, help=f"default: {DEMO}")
    p.add_argument("--only", action="append", help="a row of the table; repeatable; default: all")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


if __name__ == "__main__":
    main()
