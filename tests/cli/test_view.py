"""`irloom view`: a page is written whole, or nothing is."""

import json
import re

from irloom.cli import core


def data_of(page):
    """The data inside of a page."""
    (text,) = re.findall(r'<script type="application/json" id="irloom-data">(.*?)</script>', page.read_text())
    return json.loads(text)


def test_a_page_of_a_model(irloom, model, tmp_path):
    told = irloom("view", model, "-o", tmp_path / "page.html", "--device", "h200", "--dtype", "bf16")
    assert told.code == 0
    data = data_of(tmp_path / "page.html")
    assert data["device"]["name"] == "h200"
    assert f"{len(data['steps'])} passes" in told.out
    types = {row["text"] for row in data["tables"]["types"]}
    assert "bf16[T, 64]" in types
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"], "no part of a page is left"


def test_the_pipeline_is_chosen_as_elsewhere(irloom, model, tmp_path):
    irloom(
        "view", model, "-o", tmp_path / "a.html", "--pipeline", "canonicalize, raise", "--without", "raise"
    )
    assert [s["name"] for s in data_of(tmp_path / "a.html")["steps"]] == ["canonicalize"]
    irloom("view", model, "-o", tmp_path / "a.html", "--pipeline", "")
    assert data_of(tmp_path / "a.html")["steps"] == []


def test_the_data_alone(irloom, model):
    data = irloom("view", model, "--pipeline", "canonicalize", "--json").json
    assert (data["format"], len(data["states"])) == (1, 2)


def test_an_engine_is_its_program(irloom, engine, tmp_path):
    irloom("view", engine, "-o", tmp_path / "engine.html")
    assert data_of(tmp_path / "engine.html")["states"][0]["nodes"] > 10


def test_a_place_that_cannot_be_written(irloom, model, tmp_path):
    told = irloom("view", model, "-o", tmp_path / "missing" / "page.html")
    assert told.code == core.Exit.USER
    assert "cannot be written" in told.err


def test_an_unknown_device_and_a_missing_model(irloom, model, tmp_path):
    told = irloom("view", model, "-o", tmp_path / "page.html", "--device", "h20")
    assert told.code == core.Exit.USER
    assert "did you mean" in told.err
    assert irloom("view", tmp_path / "nothing").code == core.Exit.USER
    assert list(tmp_path.iterdir()) == []
