"""Every family, pass by pass: numbers before and after agree, and the text of each step reads back."""

from irloom.ir.parse import parse
from irloom.passes import parse_pipeline, run_pipeline
from irloom.passes.check import compare

EXACT = (
    "canonicalize, raise, canonicalize, outline, gather-logits, fuse-qkv, fuse-mlp, fuse-norm, "
    "kv-cache, kv-plan, plan-memory"
)


def test_every_pass_keeps_what_the_program_computes(family):
    _, record = run_pipeline(family.module, EXACT)
    for step, p in zip(record.steps, parse_pipeline(EXACT), strict=True):
        assert parse(step.text_after) == step.after, step.name
        report = compare(step.before, step.after, p)
        assert report.ok, f"{step.name}: {report}"


def test_quantizing_after_fusion_leaves_no_linear_in_full_precision(family):
    m, record = run_pipeline(family.module, EXACT.replace("kv-cache", "quantize(int8, group=16), kv-cache"))
    assert parse(str(m)) == m
    linears = [n for f in m.funcs.values() for n in f.nodes if n.op.name == "linear"]
    assert linears
    assert {str(n.values[1].type.elem) for n in linears} == {"i8g16"}
    assert not [miss for miss in record.near_misses if miss[0] == "quantize"]
