"""The page in a browser: what it opens, marks, finds, colours and remembers, asking nobody for anything."""

import re

import pytest

from irloom import parse, run_pipeline, view
from tests.viewer.conftest import LAYERS, chain

pytestmark = pytest.mark.usefixtures("browser")


def test_it_opens_at_the_last_state(page, record):
    state = page.state
    assert (state["pass"], state["passes"]) == (len(record.steps), len(record.steps))
    assert state["selected"] is None
    assert page.tab.title().startswith("gemma3_text")
    assert {"ids", "seqs", "kv"} <= {b["label"] for b in state["boxes"]}
    assert state["edges"] > 20


def test_layers_in_a_loop_are_one_box_that_opens(page):
    layers = next(b for b in page.state["boxes"] if b["label"].endswith(f"×{LAYERS - 1}"))
    assert layers["kind"] in {"call", "fold"}
    assert layers["open"], "there is room for it"
    within = next(b for b in page.state["boxes"] if b["key"].endswith("layer_sliding[i]:mlp"))
    was = within["open"]
    page.click(within["key"], twice=True)
    assert page.box(within["key"])["open"] is not was
    page.press("Enter")
    assert page.box(within["key"])["open"] is was
    page.click(layers["key"], twice=True)
    assert not page.box(layers["key"])["open"]
    assert within["key"] not in page.keys


def test_layers_of_a_traced_program_fold_by_their_number(page):
    page.press(*"[" * page.state["passes"])
    state = page.state
    assert state["pass"] == 0
    fold = next(b for b in state["boxes"] if b["kind"] == "fold")
    assert fold["label"].endswith(f"layers.0–{LAYERS - 2}  ×{LAYERS - 1}")
    page.click(fold["key"])
    page.tab.get_by_role("button", name=f"Show all {LAYERS - 1}").click()
    labels = {b["label"] for b in page.state["boxes"]}
    assert {f"▸ layers.{i}" for i in range(LAYERS - 1)} <= labels
    page.tab.get_by_role("button", name="Fold", exact=True).click()
    assert fold["key"] in page.keys


def test_the_slider_goes_through_the_passes(page, record):
    slider = page.tab.locator("#slider")
    slider.focus()
    page.press("Home")
    assert page.state["pass"] == 0
    assert page.state["nodes"] == len(record.steps[0].before.main.nodes)
    page.press("ArrowRight", "ArrowRight")
    assert page.state["pass"] == 2
    assert record.steps[1].text in slider.get_attribute("aria-valuetext")
    page.tab.locator(".tick").nth(1).click()
    assert page.state["pass"] == 1
    page.press("]")
    assert page.state["pass"] == 2


def pass_of(record, name):
    return next(i + 1 for i, s in enumerate(record.steps) if s.name == name)


def test_before_and_after_stand_side_by_side_with_their_marks(opened, written, record):
    with opened(written, f"#pass={pass_of(record, 'fuse-mlp')}") as page:
        assert "before" not in page.state["drawn"]
        page.press("s")
        state = page.state
        assert state["split"]
        assert state["drawn"]["before"] > 10 < state["drawn"]["after"]
        assert state["marks"]["before"]["removed"] >= 2, "the activation, and one of two products"
        assert state["marks"]["after"]["added"] >= 1, "the product of both"
        assert page.text("#before-name") == "before fuse-mlp"
        page.press("n")
        chosen = page.state["selected"]
        assert page.tab.evaluate("irloom.painted", [chosen, "after"])["mark"] in {
            "added",
            "replaced",
            "changed",
        }
        page.press("s")
        assert page.state["drawn"]["after"] > 10
        assert not page.state["split"]


def test_a_pass_that_changes_nothing_leaves_no_mark(page, record):
    quiet = next(i for i, s in enumerate(record.steps) if not s.changes.places)
    page.tab.locator(".tick").nth(quiet + 1).click()
    assert page.state["marks"]["after"] == {}


def test_search_by_name_op_and_attribute(page, record):
    last = record.steps[-1].after
    linears = sum(n.op.name == "linear" for f in last.funcs.values() for n in f.nodes)
    page.press("/")
    page.tab.keyboard.type("op:linear")
    assert len(page.state["results"]) == linears
    page.tab.fill("#search", "op:linear -lm_head")
    assert len(page.state["results"]) == linears - 1
    page.tab.fill("#search", "attr:eps op:rms_norm")
    assert len(page.state["results"]) >= 3
    page.tab.fill("#search", "self_attn.o_proj")
    assert all("o_proj" in key for key in page.state["results"])
    page.tab.fill("#search", "no such thing")
    assert page.state["results"] == []
    assert page.text("#found") == "nothing found"


def test_a_result_is_opened_selected_and_in_view(page):
    layers = next(b for b in page.state["boxes"] if b["label"].endswith(f"×{LAYERS - 1}"))
    page.click(layers["key"], twice=True)
    page.tab.fill("#search", "op:paged_attention window")
    key = page.state["results"][0]
    assert key not in page.keys
    page.tab.locator(".result").first.click()
    assert page.state["selected"] == key
    assert key in page.keys
    x, y = page.tab.evaluate("irloom.where", key)
    assert 270 < x < 1050 and 50 < y < 850
    page.press("Escape")
    page.press("Escape")
    assert page.state["selected"] is None


def test_alike_layers_are_one_result_of_which_each_can_be_found(page):
    page.tab.locator(".tick").nth(0).click()
    page.tab.fill("#search", "op:linear q_proj")
    assert len(page.state["results"]) == 2, "three layers are alike, one is not"
    assert f"×{LAYERS - 1}" in page.text("#results")
    page.tab.fill("#search", "path:layers.2.self_attn.q_proj")
    page.tab.locator(".result").first.click()
    assert page.state["selected"].endswith("q_proj_2"), "itself, though layers 0 to 2 are alike"


def test_details_of_a_node(page):
    page.tab.fill("#search", "op:paged_attention window")
    page.tab.locator(".result").first.click()
    assert page.state["selected"]
    said = page.text("#details")
    for fact in (
        "paged_attention",
        "window=8",
        "scale",
        "a cache of f32 in pages of 16 tokens; the last 8 tokens",
        "self_attn",
        "modeling_gemma3.py:",
        "made by",
        "decode",
        "prefill",
        "memory",
    ):
        assert fact in said, fact
    page.tab.locator("#details section", has_text="Operands").get_by_role("button").first.click()
    assert page.state["selected"].rpartition(".")[2].startswith("q"), "what makes the queries"


def test_details_of_the_program_list_the_passes(page, record):
    said = page.text("#details")
    for step in record.steps:
        assert step.text in said
    assert "cache per token" in said


@pytest.mark.parametrize("mode", ["time", "bytes", "flops", "error", "pass"])
def test_colours_have_a_legend(page, mode):
    page.tab.select_option("#color", mode)
    assert page.state["color"] == mode
    words = {
        "time": "predicted on h200",
        "error": "made without --verify",
        "pass": "the pass that made a node",
    }
    assert words.get(mode, "share of the") in page.text("#legend")


def test_the_dearest_node_is_the_darkest(page):
    page.tab.select_option("#color", "bytes")
    assert page.state["color"] == "bytes"
    seen = page.tab.evaluate("irloom.painted", ["main.lm_head", "after"])
    other = page.tab.evaluate("irloom.painted", ["main.last", "after"])
    assert seen["fill"] != other["fill"]
    assert re.fullmatch(r"\d+ %|[\d.]+ %", seen["badge"])


def test_errors_are_those_of_a_pass(opened, written, record):
    with opened(written, f"#pass={pass_of(record, 'fuse-mlp')}&color=error") as page:
        assert "relative error after this pass" in page.text("#legend")
        key = next(b["key"] for b in page.state["boxes"] if b["key"].endswith("layer_sliding[i]:mlp"))
        worst = page.tab.evaluate("irloom.painted", [key, "after"])["badge"]
        assert 0 <= float(worst) < 1e-4


def test_an_address_opens_the_same_view(opened, written, page):
    page.tab.fill("#search", "op:paged_attention window")
    page.tab.locator(".result").first.click()
    page.tab.select_option("#color", "bytes")
    page.tab.select_option("#at", "prefill")
    page.tab.evaluate("document.activeElement.blur()")
    page.press("s")
    state = page.state
    with opened(written, state["address"]) as other:
        again = other.state
    for fact in ("pass", "split", "color", "at", "selected", "query", "boxes", "address"):
        assert again[fact] == state[fact], fact


def test_a_strange_address_opens_the_page_as_it_is(opened, written):
    with opened(written, "#pass=99&color=<b>&sel=nothing&open=%E0%A4%A&side=x") as page:
        assert page.state["pass"] == page.state["passes"]
        assert page.state["color"] == "kind"


def test_the_back_button_undoes_a_step(page):
    last = page.state["pass"]
    page.press("[", "[")
    assert page.state["pass"] == last - 2
    page.tab.go_back()
    assert page.state["pass"] == last - 1
    page.tab.go_forward()
    assert page.state["pass"] == last - 2


def test_dark_as_the_system_says_or_as_the_reader_says(opened, written):
    with opened(written, color_scheme="dark") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.state["theme"] == "dark"
        dark = page.tab.evaluate(ground)
        page.press("t")
        assert page.state["theme"] == "light"
        assert page.tab.evaluate(ground) != dark
        page.press("t")
        assert page.state["theme"] == "dark"


def test_the_keyboard_alone_reaches_everything(page):
    page.tab.locator("#outline [tabindex='0']").focus()
    page.press("ArrowDown")
    first = page.state["selected"]
    page.press("End")
    assert page.state["selected"] != first
    group = next(b for b in page.state["boxes"] if b["open"] and b["kind"] in {"call", "fold", "loop"})
    page.tab.locator(f'#outline [data-key="{group["key"]}"]').click()
    page.press("ArrowLeft")
    assert not page.box(group["key"])["open"]
    page.press("ArrowRight")
    assert page.box(group["key"])["open"]
    page.tab.evaluate("document.activeElement.blur()")
    page.press("i")
    inside = page.state["selected"]
    assert inside.startswith(group["key"].split("..")[0])
    page.press("ArrowDown")
    assert page.state["selected"] != inside
    page.press("?")
    assert page.tab.locator("dialog[open]").count() == 1
    assert "side by side" in page.text("dialog")
    page.press("Escape")
    assert page.tab.locator("dialog[open]").count() == 0


def test_controls_have_names_and_roles(page):
    tree = page.tab.locator("#outline")
    assert tree.get_attribute("role") == "tree"
    items = tree.locator("[role=treeitem]")
    assert items.count() == len(page.state["boxes"])
    assert tree.locator("[tabindex='0']").count() == 1
    for role, name in [
        ("combobox", "Colour"),
        ("slider", "Pass"),
        ("searchbox", "search nodes"),
        ("button", "Side by side"),
    ]:
        assert page.tab.get_by_role(role, name=name).count() == 1, name


def test_a_drawing_can_be_saved(page):
    with page.tab.expect_download() as download:
        page.press("x")
    text = download.value.path().read_text("utf-8")
    assert text.startswith("<svg ")
    assert "rms_norm" in text
    assert download.value.suggested_filename.endswith(".svg")


EVIL = """
# irloom 1   model: </title><script>document.title=3</script>

def main(x: f32[4], w: f32[4] = weight("<img src=x onerror=document.title=1></script>")) -> f32[4]:
    y: f32[4] = mul(x, w)  # <img src=x onerror=alert(1)></script><script>document.title=2</script> a.py:1
    return y
"""


def test_names_are_never_markup(opened, tmp_path):
    view(run_pipeline(parse(EVIL.lstrip()), "canonicalize")[1], tmp_path / "evil.html")
    with opened(tmp_path / "evil.html") as page:
        page.tab.fill("#search", "mul")
        page.tab.locator(".result").first.click()
        assert page.state["selected"] == "main.y"
        assert page.text("#details").count("onerror") >= 3
        assert page.tab.locator("#details img, #details script").count() == 0
        assert page.tab.title() == "</title><script>document.title=3</script> · irloom"


def test_ten_thousand_nodes_open(opened, tmp_path):
    view(chain(10_000), tmp_path / "flat.html")
    with opened(tmp_path / "flat.html") as page:
        state = page.state
        assert state["leaves"] == 10_000 + 2
        assert [b["label"] for b in state["boxes"]][:2] == ["▸ 0 – 2499", "▸ 2500 – 4999"]
        assert len(state["boxes"]) < 10, "only what is open is laid out"
        page.tab.fill("#search", "name:x7777")
        page.tab.locator(".result").first.click()
        assert page.state["selected"] == "main.x7777"
        assert "main.x7777" in page.keys
