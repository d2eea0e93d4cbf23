"""Structural diff: what stays the same under other names, and each way in which two programs differ."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.diff import diff
from irloom.ir.graph import Node
from irloom.ir.parse import parse
from irloom.passes import run_pipeline

MLP = """
T: dim[1, 64]

def main(
    x: f32[T, 8],
    w: f32[16, 8] = weight("up"),
    v: f32[16, 8] = weight("gate"),
    o: f32[8, 16] = weight("down"),
):
    u = linear(x, w)  # mlp.up_proj
    g = linear(x, v)  # mlp.gate_proj
    s = silu(g)  # mlp.act
    m = mul(s, u)  # mlp
    y = linear(m, o)  # mlp.down_proj
    return y
"""


def flat(n: int) -> str:
    """``n`` equal layers, not outlined."""
    weights = "".join(f'    w{i}: f32[8, 8] = weight("model.layers.{i}.w"),\n' for i in range(n))
    rows = [
        f"    h{i} = linear(x{i}, w{i})  # model.layers.{i} m.py:1\n"
        f"    s{i} = silu(h{i})  # model.layers.{i} m.py:2\n"
        f"    x{i + 1} = add(x{i}, s{i})  # model.layers.{i} m.py:3\n"
        for i in range(n)
    ]
    head = '    ids: i32[T],\n    table: f32[16, 8] = weight("model.embed"),\n'
    first = "    x0 = embedding(ids, table)  # model.embed m.py:3\n"
    last = f"    y = relu(x{n})  # model.norm m.py:4\n    return y\n"
    return f"def main(\n{head}{weights}):\n{first}{''.join(rows)}{last}"


def rows(*lines: str) -> str:
    """A program of these lines on ``x`` and ``z``; it returns what the last one makes."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"def main(x: f32[T, 8], z: f32[T, 8]):\n{body}    return {lines[-1].partition(' ')[0]}\n"


def changes(one: str, other: str, func: str = "main") -> list[tuple[str, str | None, str | None]]:
    """Kind, old name and new name of each change."""
    found = diff(parse(one), parse(other)).func(func).changes
    return [(c.kind, c.old and c.old.name, c.new and c.new.name) for c in found]


class TestTheSame:
    def test_a_program_and_itself(self):
        d = diff(parse(MLP), parse(MLP))
        assert d.same and not d.header and d.func("main").changes == []

    def test_other_names_and_other_passes_before_it(self):
        other = re.sub(r"\b([ugsmywvo])\b(?=[,: )=]|$)", r"\1_7", MLP, flags=re.MULTILINE)
        assert other != MLP
        assert diff(parse(MLP), parse("# irloom 1   after: canonicalize\n" + other)).same

    def test_functions_of_other_names(self):
        outlined, _ = run_pipeline(parse(flat(4)), "outline")
        renamed = parse(re.sub(r"\blayer\b", "block", str(outlined)))
        (found,) = [f for f in diff(outlined, renamed).funcs if f.name == "block"]
        assert found.old is not None and found.old.name == "layer"
        assert not any(f.changes for f in diff(outlined, renamed).funcs)

    @settings(deadline=None, max_examples=25)
    @given(st.permutations(range(6)))
    def test_order_alone_is_order_alone(self, order):
        lines = [f"    a{i} = linear(x, w{i})" for i in range(6)]
        weights = ", ".join(f'w{i}: f32[8, 8] = weight("{i}")' for i in range(6))
        sums = ["    t0 = add(a0, a1)", *(f"    t{i} = add(t{i - 1}, a{i + 1})" for i in range(1, 5))]
        text = "def main(x: f32[T, 8], {}):\n{}\n    return t4\n"
        one = text.format(weights, "\n".join([*lines, *sums]))
        other = text.format(weights, "\n".join([*(lines[i] for i in order), *sums]))
        found = changes(one, other)
        assert {kind for kind, _, _ in found} <= {"moved"}
        assert len(found) == 6 - longest_rise(order)


def longest_rise(order: list[int]) -> int:
    """The length of a longest rising subsequence, by trying every end."""
    best: list[int] = []
    for i, x in enumerate(order):
        best.append(1 + max((b for b, y in zip(best, order[:i], strict=True) if y < x), default=0))
    return max(best)


class TestKinds:
    def test_a_node_between_is_added_and_its_reader_changed(self):
        other = MLP.replace("    y = linear(m, o)", "    n = relu(m)\n    y = linear(n, o)")
        assert changes(MLP, other) == [("added", None, "n"), ("changed", "y", "y")]
        assert changes(other, MLP) == [("removed", "n", None), ("changed", "y", "y")]

    def test_another_op_of_the_same_name_replaces(self):
        assert changes(MLP, MLP.replace("silu(g)", "gelu(g)")) == [("replaced", "s", "s")]

    def test_another_op_in_the_same_place_replaces(self):
        other = MLP.replace("s = silu(g)", "act = gelu(g)").replace("mul(s, u)", "mul(act, u)")
        assert changes(MLP, other) == [("replaced", "s", "act")]

    def test_an_attribute_an_operand_and_a_literal_change(self):
        one = rows("a = softmax(x, dim=1)", "b = add(a, x)", "y = mul(b, 2.0)")
        assert changes(one, one.replace("dim=1", "dim=0")) == [("changed", "a", "a")]
        assert changes(one, one.replace("add(a, x)", "add(a, z)")) == [("changed", "b", "b")]
        assert changes(one, one.replace("2.0", "3.0")) == [("changed", "y", "y")]

    def test_other_values_are_returned_or_in_another_order(self):
        one = rows("a = silu(x)", "b = gelu(x)").replace("return b", "return a, b")
        for returned in ("b, a", "a", "a, b, b"):
            found = diff(parse(one), parse(one.replace("return a, b", f"return {returned}")))
            assert not found.same and found.func("main").returns == ("a, b", returned)
            assert not found.func("main").changes

    def test_data_is_given_in_another_order(self):
        one = "def main(x: f32[T, 8], y: f32[T, 8], z: f32[T, 8]):\n    s = sub(x, y)\n    return s"
        other = one.replace("x: f32[T, 8], y: f32[T, 8]", "y: f32[T, 8], x: f32[T, 8]")
        found = [(kind, new) for kind, _, new in changes(one, other)]
        assert found == [("moved", "y"), ("moved", "x")]

    def test_types_alone_change(self):
        other = MLP.replace("f32", "bf16")
        assert {kind for kind, _, _ in changes(MLP, other)} == {"retyped"}
        assert len(changes(MLP, other)) == 4 + 5, "parameters and nodes"

    def test_a_weight_is_bound_to_another_tensor(self):
        assert changes(MLP, MLP.replace('"up"', '"lift"')) == [("changed", "w", "w")]

    def test_weights_that_exchange_their_names_are_what_they_are_bound_to(self):
        other = (
            MLP.replace('weight("up")', "@")
            .replace('weight("gate")', 'weight("up")')
            .replace("@", 'weight("gate")')
        )
        found = changes(MLP, other)
        assert [(k, a, b) for k, a, b in found if a in ("w", "v")] == []
        assert {kind for kind, _, _ in found} == {"changed", "moved"}, "gate and up exchange their places"

    def test_what_is_computed_once_instead_of_twice_is_removed_and_its_readers_are_the_same(self):
        one = rows("a = silu(x)", "b = silu(x)", "c = exp(b)", "y = add(a, c)")
        other = rows("a = silu(x)", "c = exp(a)", "y = add(a, c)")
        assert changes(one, other) == [("removed", "b", None)]

    def test_a_reader_of_what_another_op_makes_under_the_same_name_is_the_same(self):
        one = rows("r = add(x, z)", "h = rms_norm(r, n)", "y = silu(h)", "o = mul(y, r)")
        other = rows(
            "r, h = add_rms_norm(x, z, n)  # -> f32[T, 8], f32[T, 8]", "y = silu(h)", "o = mul(y, r)"
        )
        one, other = (
            t.replace("z: f32[T, 8]", 'z: f32[T, 8], n: f32[8] = weight("n")') for t in (one, other)
        )
        assert changes(one, other) == [("replaced", "r", "r"), ("removed", "h", None)]

    def test_the_header(self):
        other = MLP.replace("dim[1, 64]", "dim[1, 128]")
        assert diff(parse(MLP), parse(other)).header == [("T", "dim[1, 64]", "dim[1, 128]")]
        assert not diff(parse(MLP), parse(other)).same


class TestRenumbered:
    """Values are named after their ops and numbered: one more node renames all that follow."""

    def program(self, *ops: str) -> str:
        return rows(*(f"v{i} = {name}({f'v{i - 1}' if i else 'x'})" for i, name in enumerate(ops)))

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(st.sampled_from(["silu", "exp", "neg", "relu"]), min_size=1, max_size=12),
        st.integers(0, 12),
    )
    def test_one_more_node_is_one_more_node(self, ops, at):
        at = min(at, len(ops))
        found = changes(self.program(*ops), self.program(*ops[:at], "tanh", *ops[at:]))
        assert [kind for kind, _, _ in found if kind != "changed"] == ["added"]
        assert sum(kind == "changed" for kind, _, _ in found) == (at < len(ops))


class TestFunctions:
    def test_outlined_layers_moved_into_one_function(self):
        m = parse(flat(5))
        outlined, _ = run_pipeline(m, "outline")
        d = diff(m, outlined)
        layer = d.func("layer")
        assert layer.old is None
        assert [c.new.name for c in layer.changes if c.new] == ["x"], "what stood nowhere is its parameter"
        moved = d.func("main").of("moved")
        assert len(moved) == 5 * 4, "three nodes and a weight of each layer"
        assert {(c.old.func, c.new.func) for c in moved if c.old and c.new} == {("main", "layer")}
        assert d.func("main").of("removed") == []

    def test_inlined_layers_moved_back(self):
        outlined, _ = run_pipeline(parse(flat(5)), "outline")
        back, _ = run_pipeline(outlined, "inline")
        d = diff(outlined, back)
        assert d.func("layer").new is None
        assert len(d.func("main").of("moved")) == 5 * 4
        assert diff(parse(flat(5)), back).same


class TestPasses:
    def test_what_is_new_says_which_pass_made_it(self):
        m = parse(MLP)
        after, record = run_pipeline(m, "canonicalize, fuse-mlp")
        news = [c.new for c in diff(m, after).func("main").changes if c.new]
        made = {x.at.op.name: x.made_by for x in news if isinstance(x.at, Node)}
        assert made.pop("silu_mul") == "fuse-mlp"
        assert set(made.values()) <= {"", "fuse-mlp"}
        assert diff(record.steps[0].before, record.steps[0].after).same
