"""Programs to look at, and their pages in an installed Chromium; `irloom.state()` says what a page shows."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from irloom import parse, run_pipeline, trace
from irloom.driver import Choice, passes_of
from irloom.passes.node_errors import node_errors
from irloom.viewer import Settings, document, render
from tests.tiny import gemma_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAYERS = 4


@pytest.fixture(scope="session")
def record():
    """A model of four layers, the last one of another kind, traced and taken through the CPU's pipeline."""
    return run_pipeline(trace(gemma_config(num_hidden_layers=LAYERS)), passes_of(Choice()))[1]


@pytest.fixture(scope="session")
def data(record):
    from irloom.ir.device import device

    (fused,) = [i for i, s in enumerate(record.steps) if s.name == "fuse-mlp"]
    return document(record, Settings(device=device("h200")), {fused: node_errors(record.steps[fused])})


def chain(nodes):
    """A program of so many additions in a row, of which nothing says where they come from."""
    rows = "".join(f"    x{i + 1} = add(x{i}, 1.0)\n" for i in range(nodes))
    return parse(f"def main(x0: f32[T, 8]):\n{rows}    return x{nodes}\n")


class Page:
    """A page in the browser: what it says of itself, and what it asked for or complained about."""

    def __init__(self, tab):
        self.tab, self.complaints, self.requests = tab, [], []
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))

    def open(self, path, fragment=""):
        self.tab.goto(f"{path.as_uri()}{fragment}")
        return self.state

    @property
    def state(self):
        """What the page is, once it has drawn what it was asked for."""
        return self.tab.evaluate("irloom.settled()")

    def box(self, wanted):
        """The one box whose key ends so."""
        (found,) = [b for b in self.state["boxes"] if b["key"].endswith(wanted)]
        return found

    @property
    def keys(self):
        return {b["key"] for b in self.state["boxes"]}

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)
        return self.state

    def click(self, key, twice=False):
        """Bring a box into view and click the middle of its title."""
        self.tab.evaluate("key => irloom.panes.after.isInView(key) || irloom.panes.after.reveal(key)", key)
        x, y = self.tab.evaluate("irloom.where", key)
        (self.tab.mouse.dblclick if twice else self.tab.mouse.click)(x, y)
        return self.state

    def text(self, element):
        return self.tab.inner_text(element)


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def written(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "page.html"
    path.write_text(render(data), "utf-8")
    return path


@pytest.fixture
def opened(browser):
    """Open a file in a tab of its own; at the end nothing may have been asked for but the file."""

    @contextmanager
    def run(path: Path, fragment: str = "", **options):
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        page = Page(context.new_page())
        page.open(path, fragment)
        yield page
        assert page.state["problem"] is None
        assert page.complaints == []
        asked = [
            u for u in page.requests if not u.startswith("blob:") and u.partition("#")[0] != path.as_uri()
        ]
        assert asked == []
        context.close()

    return run


@pytest.fixture
def page(opened, written):
    with opened(written) as made:
        yield made
