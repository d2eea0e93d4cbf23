"""Pipelines as text: what is accepted, what is refused and how, what a run leaves behind."""

import pytest

from irloom.ir.errors import IRError, PipelineError
from irloom.ir.graph import Node
from irloom.ir.ops import neg
from irloom.ir.parse import parse
from irloom.passes import Changes, Pass, limited, name_of, parse_pipeline, run_pipeline, spell
from irloom.passes.canonicalize import Canonicalize
from irloom.passes.quantize import Quantize
from irloom.passes.registry import Registry

PROGRAM = """def main(g: f32[T, 8], u: f32[T, 8]):
    s = silu(g)
    m = mul(s, u)
    y = mul(m, 1)
    return y"""


class TestText:
    def test_a_pipeline_reads_back_as_it_is_spelled(self):
        text = "canonicalize, quantize('int4', group=64, skip=('lm_head', 'embed')), plan-memory"
        assert ", ".join(spell(p) for p in parse_pipeline(text)) == text

    def test_the_first_option_needs_no_name_and_a_word_no_quotes(self):
        (p,) = parse_pipeline("quantize(int4)")
        assert p == Quantize(dtype="int4")

    def test_one_string_does_for_a_tuple_of_strings(self):
        (p,) = parse_pipeline("quantize(skip=lm_head)")
        assert p == Quantize(skip=("lm_head",))

    def test_a_sequence_may_hold_texts_and_passes(self):
        names = [
            name_of(type(p)) for p in parse_pipeline(["canonicalize, fuse-mlp", Canonicalize(), "fuse-norm"])
        ]
        assert names == ["canonicalize", "fuse-mlp", "canonicalize", "fuse-norm"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("canonicalise", "no pass 'canonicalise'\nhint: did you mean 'canonicalize'?"),
            ("fuse_mlp", "no pass 'fuse_mlp'\nhint: did you mean 'fuse-mlp'?"),
            ("core", "no pass 'core'"),
            ("quantize(groups=3)", "quantize: no option 'groups'\nhint: did you mean 'group'?"),
            ("canonicalize(x=1)", "canonicalize: no option 'x'\nhint: it has none"),
            ("canonicalize(1)", "canonicalize: 1 options are given, it has none"),
            ("quantize(int8, dtype=int4)", "quantize: option 'dtype' is given twice"),
            ("quantize(group=1.5)", "quantize: option `group` is 1.5, not an integer"),
            ("quantize(group=true)", "quantize: option `group` is True, not an integer"),
            ("quantize(embeddings=1)", "quantize: option `embeddings` is 1, not true or false"),
            ("quantize(skip=3)", "quantize: option `skip` is 3, not a tuple of strings"),
            ("quantize(int2)", "quantize: option `dtype` is 'int2', not one of int8, int4"),
            ("quantize(int8", "pipeline 'quantize(int8': a parenthesis is not closed"),
            ("quantize(skip='a)", 'pipeline "quantize(skip=\'a)": a quote is not closed'),
            (
                "canonicalize,,fuse-mlp",
                "pipeline 'canonicalize,,fuse-mlp': there is nothing between two commas",
            ),
            ("canonicalize fuse-mlp", "pipeline: 'canonicalize fuse-mlp' is no pass"),
            ("quantize(1 + 'a')", "quantize: options \"1 + 'a'\" cannot be read"),
        ],
    )
    def test_a_mistake_is_named(self, text, message):
        with pytest.raises(PipelineError) as caught:
            parse_pipeline(text)
        assert str(caught.value).startswith(message)


class TestOrder:
    def test_after_and_before_hold_when_both_run(self):
        for text, message in [
            ("fuse-mlp, canonicalize", "fuse-mlp must run after canonicalize"),
            ("quantize, fuse-qkv", "fuse-qkv must run before quantize"),
        ]:
            with pytest.raises(PipelineError, match=message):
                run_pipeline(parse(PROGRAM), text)
        run_pipeline(parse(PROGRAM), "fuse-mlp")

    def test_a_pass_may_run_again_later(self):
        run_pipeline(parse(PROGRAM), "canonicalize, fuse-mlp, canonicalize")

    def test_what_a_module_has_behind_it_counts(self):
        m, _ = run_pipeline(parse(PROGRAM), "quantize")
        with pytest.raises(PipelineError, match="fuse-qkv must run before quantize"):
            run_pipeline(m, "fuse-qkv")

    def test_what_is_required_must_have_run_and_not_been_undone(self, tmp_path):
        first = plugin(tmp_path, "first_one", "")
        undo = plugin(tmp_path, "undo_it", "preserves = ()")
        needs = plugin(tmp_path, "needs_it", 'requires = ("first-one",)')
        run_pipeline(parse(PROGRAM), [first(), needs()])
        with pytest.raises(PipelineError, match="needs-it requires first-one, which has not run"):
            run_pipeline(parse(PROGRAM), [needs()])
        with pytest.raises(PipelineError, match="needs-it requires first-one, which undo-it has undone"):
            run_pipeline(parse(PROGRAM), [first(), undo(), needs()])

    def test_nothing_runs_when_the_order_is_wrong(self):
        ran = []
        with pytest.raises(PipelineError):
            run_pipeline(parse(PROGRAM), "canonicalize, quantize, fuse-mlp", lambda *step: ran.append(step))
        assert ran == []


class TestRun:
    def test_it_works_on_a_copy_and_says_what_ran(self):
        m = parse(PROGRAM)
        after, record = run_pipeline(m, "canonicalize, fuse-mlp")
        assert m == parse(PROGRAM)
        assert after.passes == ["canonicalize", "fuse-mlp"]
        assert [s.name for s in record.steps] == ["canonicalize", "fuse-mlp"]

    def test_the_record_keeps_texts_changes_near_misses_and_options(self):
        m = parse(
            "def main(g: f32[T, 8], u: f32[T, 8]):\n    s = silu(g)\n    y = mul(s, u)\n    return y, s"
        )
        after, record = run_pipeline(m, "canonicalize, quantize(int4), fuse-norm")
        assert record.steps[1].text == "quantize('int4')"
        assert record.steps[0].text_before.endswith(record.steps[0].text_after.partition("\n")[2])
        assert parse(record.steps[-1].text_after) == after
        _, record = run_pipeline(m, "fuse-mlp")
        ((name, miss),) = record.near_misses
        assert (name, str(miss)) == ("fuse-mlp", "main.y: FuseSiluMul: s has another reader: return")
        assert record.step("fuse-mlp").changes.places == []
        assert "fuse-mlp: 0 changes, 1 near misses" in str(record)

    def test_progress_is_told_before_each_pass(self):
        told = []
        run_pipeline(parse(PROGRAM), "canonicalize, fuse-mlp", lambda *step: told.append(step))
        assert told == [("canonicalize", 0, 2), ("fuse-mlp", 1, 2)]

    def test_a_pass_that_breaks_the_program_is_named(self, tmp_path):
        broken = plugin(tmp_path, "break_it", "", run="m.main.body.pop()")
        with pytest.raises(IRError) as caught:
            run_pipeline(parse(PROGRAM), [broken()])
        assert str(caught.value).endswith("--> after pass break-it")

    def test_a_node_says_which_pass_made_it(self):
        after, record = run_pipeline(parse(PROGRAM), "canonicalize, fuse-mlp")
        assert {n.op.name: n.made_by for n in after.copy().main.nodes} == {"silu_mul": "fuse-mlp"}
        assert {n.made_by for n in record.steps[0].after.main.nodes} == {""}  # nothing new: an op less
        assert after == parse(str(after)), "it is no part of what a program is"
        read = "a = attention(q, q, v, seqs, scale=1.0)\n    y = silu(a)"
        m = parse(f"def main(q: f32[T, 2, 4], v: f32[T, 2, 4], seqs: seqs[T, S]):\n    {read}\n    return y")
        after, _ = run_pipeline(m, "kv-cache")
        assert [n.made_by for n in after.main.nodes] == ["kv-cache", "kv-cache", ""], (
            "an op exchanged in place"
        )

    def test_fuel_counts_over_the_whole_pipeline(self):
        with limited(None) as fuel:
            run_pipeline(parse(PROGRAM), "canonicalize, fuse-mlp")
        assert fuel.spent == 2
        with limited(1):
            _, record = run_pipeline(parse(PROGRAM), "canonicalize, fuse-mlp")
        assert [len(s.changes) for s in record.steps] == [1, 0]


def plugin(folder, name, facts, run="pass"):
    """A pass in a file of its own, as ``--plugin`` loads it."""
    path = folder / f"{name}.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from irloom.passes import Changes, Pass\n\n"
        "@dataclass(frozen=True)\n"
        f"class P(Pass):\n    '''A pass for a test.'''\n    {facts}\n"
        f"    def run(self, m):\n        {run}\n        return Changes()\n"
    )
    found = Registry().register_file(path)
    assert found is not None
    return found


class Negate(Pass):
    """Not a pass of the folder: it is given as an object."""

    def run(self, m):
        n = m.main.body[-1]
        assert isinstance(n, Node)
        n.op = neg
        return Changes(["main: all of it"])


def test_a_pass_need_not_be_registered_to_run():
    m, record = run_pipeline(parse("def main(x: f32[T]):\n    y = sin(x)\n    return y"), [Negate()])
    assert [n.op.name for n in m.main.nodes] == ["neg"]
    assert len(record.steps[0].changes) == 1


def test_an_option_of_one_of_several_words_or_none_is_read():
    (p,) = parse_pipeline("kv-cache(elem='bf16')")
    assert spell(p) == "kv-cache('bf16')"
    with pytest.raises(PipelineError, match="'bf17', not one of f32, f16, bf16, f8e4m3 or none"):
        parse_pipeline("kv-cache(elem='bf17')")
