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


def test_verified_passes_and_the_error_of_every_value(irloom, model):
    told = irloom(
        "view", model, "--json", "--verify", "--random", "--layers", "1",
        "--pipeline", "canonicalize, raise, fuse-mlp, quantize(int8)",
    )  # fmt: skip
    assert told.code == 0
    steps = {s["name"]: s for s in told.json["steps"]}
    assert steps["raise"]["numerics"]["error"] <= steps["raise"]["numerics"]["allowed"]
    worst = {name: max(error for _, error in s["errors"]["main"]) for name, s in steps.items()}
    assert worst["fuse-mlp"] < 1e-4 < worst["quantize"]


def test_a_wrong_pass_is_named_and_its_page_written(irloom, model, tmp_path):
    plugin = tmp_path / "opposite.py"
    plugin.write_text(WRONG)
    told = irloom(
        "view", model, "-o", tmp_path / "page.html", "--verify", "--random", "--layers", "1",
        "--plugin", plugin, "--pipeline", "canonicalize, raise, opposite",
    )  # fmt: skip
    assert told.code == core.Exit.USER
    assert told.err.startswith("opposite: ")
    assert data_of(tmp_path / "page.html")["steps"][-1]["numerics"]["error"] > 0.1


WRONG = '''"""Take the activation of a Llama for its opposite: a mistake."""

from dataclasses import dataclass

from irloom import Pass, Rewrite, apply
from irloom.ir.ops import neg, silu


class Turn(Rewrite):
    def match(self, x):
        return silu(x)

    def replace(self, x):
        return neg(x)


@dataclass(frozen=True)
class Opposite(Pass):
    """Negate."""

    def run(self, m):
        return apply(m, [Turn()])
'''


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
