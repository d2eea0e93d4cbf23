"""Vendored libraries are what their lock says, the page's own scripts parse, and all of it is in the page."""

import re
import shutil
import subprocess

import pytest

from irloom import parse
from irloom.viewer import assets, document, render

OWN = sorted((assets.ROOT / "static" / "js").glob("*.js"))


@pytest.mark.parametrize("name", assets.lock())
def test_a_vendored_file_is_the_published_one(name):
    row = assets.lock()[name]
    assert assets.sha256(assets.ROOT / "vendor" / name) == row["sha256"]
    assert (assets.ROOT / "vendor" / row["licence_file"]).stat().st_size > 500


def test_all_vendored_files_are_locked():
    here = {p.name for p in (assets.ROOT / "vendor").glob("*.js")}
    assert here == set(assets.lock()) == {*assets.LIBRARIES, assets.WORKER}


def test_every_own_file_is_in_the_page():
    assert {p.stem for p in OWN} == set(assets.SCRIPTS)
    assert {p.stem for p in (assets.ROOT / "static" / "css").glob("*.css")} == set(assets.STYLES)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_scripts_parse():
    for script in OWN:
        subprocess.run(["node", "--check", script], check=True, capture_output=True)


def test_own_files_are_short_and_say_what_they_are_for():
    for file in [*OWN, *(assets.ROOT / "static" / "css").glob("*.css")]:
        lines = file.read_text("utf-8").splitlines()
        assert len(lines) <= 400, f"{file.name} has {len(lines)} lines"
        assert max(map(len, lines)) <= 140, f"{file.name} has a line that is too long"
    assert all(file.read_text("utf-8").startswith("// ") for file in OWN)


def test_scripts_never_write_markup():
    for file in OWN:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", file.read_text("utf-8")
        )


def test_the_page_says_whose_libraries_it_holds():
    page = render(document(parse("def main(x: f32[4]):\n    y = silu(x)\n    return y\n")))
    for row in assets.lock().values():
        assert f"{row['package']} {row['version']}, {row['licence']}, {row['source']}" in page


def test_the_page_may_not_connect_to_anything():
    page = render(document(parse("def main(x: f32[4]):\n    y = silu(x)\n    return y\n")))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#x27;none&#x27;;")
    assert "connect-src" not in policy
    assert not re.search(r'(?:src|href)="https?:', page.partition("<script")[0])
