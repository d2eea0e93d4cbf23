"""A module becomes networks: one where it can be, as few as it must else, one a layer where that is asked."""

from __future__ import annotations

import re

import pytest

from irloom.backends.tensorrt.backend import KEPT
from irloom.backends.tensorrt.context import LOWERINGS
from irloom.backends.tensorrt.lower import Cut, load_handlers, lower
from irloom.backends.tensorrt.program import Outside, Program, Segment
from irloom.backends.tensorrt.structure import Structure
from irloom.backends.tensorrt.summary import declined, fallbacks, networks
from irloom.ir.errors import PipelineError
from irloom.ir.parse import parse
from irloom.passes.decompose import DECOMPOSED

HEADER = "# irloom 1\nT: dim[1, 16]; S: dim[1, 4]; P: dim[1, 4]\n"

PLAIN = """
def main(
    ids: i32[T], seqs: seqs[T, S], embed: f32[50, 8] = weight("embed"), w: f32[8, 8] = weight("w")
) -> f32[S, 8]:
    x: f32[T, 8] = embedding(ids, embed)
    y: f32[T, 8] = linear(x, w)
    h: f32[T, 8] = add(x, y)
    last: f32[S, 8] = last_rows(h, seqs)
    return last
"""

SPLIT = """
def main(ids: i32[T], seqs: seqs[T, S], embed: i32[50, 8] = weight("embed")) -> f32[S, 8]:
    x: i32[T, 8] = embedding(ids, embed)
    a: i32[T, 8] = bitwise_xor(x, 3)
    b: i32[T, 8] = bitwise_xor(x, 5)
    far: i32[T, 8] = mul(x, 7)
    c: i32[T, 8] = add(a, b)
    d: i32[T, 8] = add(c, far)
    h: f32[T, 8] = cast(d, to=f32)
    y: f32[S, 8] = last_rows(h, seqs)
    return y
"""


def lowered(text: str, cut: Cut = "whole") -> Program:
    return lower(parse(HEADER + text), cut)


def shape(p: Program) -> list[str]:
    """Each part: the values that a network leaves, or an op."""
    return [", ".join(part.makes) if isinstance(part, Segment) else part.node.op.name for part in p.parts]


def test_what_layers_can_say_is_one_network():
    p = lowered(PLAIN)
    (segment,) = p.segments
    assert shape(p) == [p.logits]
    assert segment.step == ("ids", "last")
    assert [t.name for t in segment.network.weights] == ["embed", "w"]
    assert {name: s.param.name for name, s in p.weights.items()} == {"embed": "embed", "w": "w"}


def test_a_value_that_is_called_like_an_array_of_the_step_gets_another_name():
    p = lowered(PLAIN)
    assert p.logits == "last_1"
    assert "last" in p.segments[0].reads


def test_an_op_that_layers_cannot_say_runs_between_two_networks():
    """Both stand between the same two; what depends on neither does not wait for them."""
    p = lowered(SPLIT)
    assert shape(p) == ["x, far", "bitwise_xor", "bitwise_xor", "y"]
    first, *_, last = p.parts
    assert isinstance(last, Segment)
    assert set(last.reads) == {"a", "b", "far", "last"}
    assert set(p.values) == {"x", "far", "a", "b", "y"}
    assert isinstance(first, Segment)
    assert "mul" in {n.node.op.name for n in p.nodes if n.reason is None}


def test_what_a_failing_handler_added_is_taken_back():
    p = lowered(SPLIT)
    assert not any("a." in placed.name for s in p.segments for placed in s.network.layers)


def test_the_text_shows_every_part():
    text = str(lowered(SPLIT))
    assert text.startswith("#  for tensorrt: 2 segments, 2 ops outside\nT: dim[1, 16]; S: dim[1, 4]")
    assert "segment 0:\n    ids: i32[T]  # input\n    embed: i32[50, 8]  # weight\n" in text
    assert "outside: a: i32[T, 8] = bitwise_xor(x, 3)  # no layer works on the bits of i32" in text
    assert "    return y = y.gather\n" in text


def test_without_splits_such_an_op_is_an_error_that_says_where_and_why():
    said = r"TensorRT cannot express bitwise_xor \(and 1 more\): no layer works on the bits of i32"
    with pytest.raises(PipelineError, match=said) as e:
        lower(parse(HEADER + SPLIT), split=False)
    assert "at a" in str(e.value)


def test_each_op_is_told_before_anything_is_built():
    p = lowered(SPLIT)
    made = networks(p)
    told = {op.op: (op.how, op.nodes, op.layers) for op in made.ops}
    assert (made.segments, made.whole) == (2, False)
    assert told["add"] == ("native", 2, ("ElementWise",))
    assert told["cast"] == ("native", 1, ("Cast",))
    assert told["bitwise_xor"] == ("outside", 2, ())
    assert fallbacks(p) == {"bitwise_xor": 2}
    assert declined(p) == {"bitwise_xor": "`a`: no layer works on the bits of i32"}


def test_an_op_that_a_pass_writes_in_simpler_ones_says_so():
    text = PLAIN.replace("linear(x, w)", "mish(x)").replace(', w: f32[8, 8] = weight("w")', "")
    (outside,) = lowered(text).outside
    assert outside.reason == "TensorRT has no layer for mish; the pass decompose writes it in simpler ops"


LAYERS = """
def layer(x: f32[T, 8], w: f32[8, 8] = weight("layers.{i}.w")) -> f32[T, 8]:
    y: f32[T, 8] = linear(x, w)  # proj
    z: f32[T, 8] = tanh(y)
    h: f32[T, 8] = add(x, z)
    return h

def main(ids: i32[T], seqs: seqs[T, S], embed: f32[50, 8] = weight("embed")) -> f32[S, 8]:
    x: f32[T, 8] = embedding(ids, embed)  # embed
    for i in range(3):
        x = layer[i](x)  # layers.{i}
    y: f32[S, 8] = last_rows(x, seqs)
    return y
"""


def test_cut_at_its_layers_a_module_has_a_network_a_layer_and_alike_ones_are_one():
    p = lowered(LAYERS, "layer")
    assert len(p.segments) == 5
    made = [Structure.of(s.network) for s in p.segments]
    assert len({s.text for s in made}) == 3
    assert [s.names["w0"] for s in made[1:4]] == ["w", "w_1", "w_2"]
    assert made[1].names == {"in0": "x", "w0": "w", "out0": "h"}
    assert len(lowered(LAYERS).segments) == 1


def test_weights_that_layers_share_stay_one():
    p = lowered(LAYERS.replace("layers.{i}.w", "shared.w"))
    assert [t.name for t in p.segments[0].network.weights] == ["embed", "w"]


def test_the_pipeline_keeps_what_has_a_lowering_of_its_own():
    load_handlers()
    assert tuple(sorted(set(LOWERINGS) & set(DECOMPOSED))) == KEPT


def test_a_part_names_what_it_reads_and_makes():
    (outside, _) = lowered(SPLIT).outside
    assert isinstance(outside, Outside)
    assert (outside.reads, outside.makes) == (("x",), ("a",))
    assert re.match(r"a: i32\[T, 8\] = bitwise_xor\(x, 3\)", str(outside))
