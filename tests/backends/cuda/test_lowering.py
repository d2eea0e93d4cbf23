"""What functions come to: launches of kernels, with what is around products folded in."""

from __future__ import annotations

from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Launch, Program
from irloom.backends.cuda.weights import fragment_spans
from irloom.ir.parse import parse
from irloom.passes import run_pipeline
from tests.backends.cuda.serving import Model


def kernels(program: Program, function: str) -> list[str]:
    """The kernels that a function launches, in order."""
    return [s.node.op.name if s.kernel == "body" else s.kernel for s in program.functions[function].launches]


def products(program: Program, function: str) -> list[Launch]:
    """The products among them."""
    return [s for s in program.functions[function].launches if s.kernel == "product"]


def test_a_layer_of_a_llama_is_five_launches() -> None:
    program = Model.of("llama").program()
    assert kernels(program, "layer") == ["product", "rope_attention", "product", "product", "product"]
    qkv, o, gate_up, down = products(program, "layer")
    assert [p.attrs["form"].eps is not None for p in (qkv, o, gate_up, down)] == [True, False, True, False]
    assert gate_up.attrs["form"].gated and gate_up.attrs["form"].act == "silu"
    assert [p.args[3] is not None for p in (qkv, o, gate_up, down)] == [False, True, False, True]
    assert not program.fallbacks and not program.exact


def test_four_bit_weights_that_products_alone_read_lie_in_fragments() -> None:
    text = PROGRAM.replace("# irloom 1", "# irloom 1\ni4g32 = quant(i4, group=32, scale=bf16)")
    text = text.replace("f32[16, 32] = weight", "i4g32[16, 32] = weight")
    for elem, spans in (("bf16", {"a": 32, "b": 32}), ("f32", {})):
        program = lower(parse(text.replace("f32[", f"{elem}[")))
        assert {p.name: span for p, span in fragment_spans(program).items()} == spans


def test_the_head_takes_the_last_norm_along() -> None:
    program = Model.of("llama").program()
    assert kernels(program, "main") == ["positions", "embedding", "last_rows", "product"]
    (head,) = products(program, "main")
    assert head.attrs["form"].eps is not None


def test_a_norm_inside_of_a_sum_stays_a_kernel() -> None:
    """Gemma 3 normalizes what a block adds: that needs the whole row first."""
    names = kernels(Model.of("gemma3_text").program(), "layer_full")
    assert names.count("add_rms_norm") == 1 and names.count("rms_norm_add") == 1


PROGRAM = """
# irloom 1
T: dim[1, 64]; S: dim[1, 8]

def main(
    x: f32[T, 32],
    seqs: seqs[T, S],
    g: f32[32] = weight("g"),
    a: f32[16, 32] = weight("a"),
    b: f32[16, 32] = weight("b"),
) -> (f32[T, 16], f32[T, 16]):
    h: f32[T, 32] = rms_norm(x, g)
    y: f32[T, 16] = linear(h, a)
    z: f32[T, 16] = linear(h, b)
    return y, z
"""


def test_a_norm_that_two_products_read_is_made_once() -> None:
    program = lower(parse(PROGRAM))
    assert kernels(program, "main") == ["rms_norm", "product", "product"]


def test_a_product_by_a_bias_that_is_computed_runs_its_body() -> None:
    """Kernels read a bias while the one in front is still running. The norm in front is made, too."""
    text = PROGRAM.replace("linear(h, b)", "linear(h, b, c)").replace("linear(h, a)", "linear(x, a)")
    text = text.replace("    h: f32", "    c: f32[16] = tanh(bias)\n    h: f32")
    program = lower(parse(text.replace(") -> (", '    bias: f32[16] = weight("bias"),\n) -> (')))
    assert kernels(program, "main") == ["elementwise", "rms_norm", "product", "linear"]
    assert program.declined == {"linear": "main.z: a bias that is computed"}


def test_a_norm_that_is_returned_is_made() -> None:
    text = PROGRAM.replace("return y, z", "return y, h").replace("f32[T, 16]):", "f32[T, 32]):")
    assert kernels(lower(parse(text)), "main")[0] == "rms_norm"


def test_logits_are_not_widened_in_memory() -> None:
    """Who samples reads what the head made; another value that is returned is made as its type says."""
    casts = "logits: f32[T, 16] = cast(y, to=f32)\n    w: f32[T, 16] = cast(z, to=f32)\n"
    text = PROGRAM.replace("f32[", "bf16[").replace("return y, z", f"{casts}    return logits, w")
    program = lower(parse(text.replace("(bf16[T, 16], bf16[T, 16])", "(f32[T, 16], f32[T, 16])")))
    assert kernels(program, "main") == ["rms_norm", "product", "product", "elementwise"]
    assert "logits = y" in str(program)
    also = text.replace("cast(z, to=f32)", "neg(logits)")
    program = lower(parse(also.replace("(bf16[T, 16], bf16[T, 16])", "(f32[T, 16], f32[T, 16])")))
    assert kernels(program, "main").count("elementwise") == 2


ATTENTION = """
# irloom 1
T: dim[1, 64]; S: dim[1, 8]; P: dim[1, 64]

def main(
    q: f32[T, 4, 16],
    k: f32[T, 2, 16],
    at: i32[T],
    kv: paged[f32, 8][P, 2, 16],
    seqs: seqs[T, S],
) -> (f32[T, 4, 16], paged[f32, 8][P, 2, 16]):
    turned, kv1 = rope_append(q, k, k, kv, at, seqs)
    y: f32[T, 4, 16] = paged_attention(turned, kv1, seqs, scale=0.25)
    return y, kv1
"""


def test_attention_rotates_queries_that_nobody_else_reads() -> None:
    assert kernels(lower(parse(ATTENTION)), "main") == ["rope_attention"]
    also = ATTENTION.replace("return y, kv1", "z: f32[T, 4, 16] = add(y, turned)\n    return z, kv1")
    assert kernels(lower(parse(also)), "main")[:2] == ["rope_append", "paged_attention"]


def test_an_op_without_a_kernel_runs_its_body_and_says_so() -> None:
    text = PROGRAM.replace("linear(h, b)", "linear(h, b)\n    w: f32[T, 16] = cumsum(z, dim=-1)").replace(
        "return y, z", "return y, w"
    )
    program = lower(parse(text))
    assert program.fallbacks == {"cumsum": 1}
    assert "body.cumsum(w, z)" in str(program)


def test_the_program_prints_what_is_launched() -> None:
    text = str(Model.of("llama").program())
    assert "x, kv[i] = layer[i](x, positions, seqs, kv[i])" in text
    assert "rope_attention(paged_attention, reshape, reshape_1, reshape_2, kv, seqs" in text


def test_every_pass_of_the_pipeline_is_one_that_others_have() -> None:
    traced = Model.of("llama").traced
    m, _ = run_pipeline(traced, Model.of("llama").pipeline())
    assert lower(m).functions.keys() == {"layer", "main"}
