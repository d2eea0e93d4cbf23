"""What a pass may do wrong, and what it is told: the whole message, with the line of its own code."""

from dataclasses import dataclass

import pytest

from irloom.ir.errors import IrloomError
from irloom.ir.ops import neg, sin
from irloom.ir.parse import parse
from irloom.passes import Pass, Rewrite, apply, parse_pipeline, run_pipeline
from irloom.passes.registry import Registry

PROGRAM = """def main(x: f32[T, 8], y: f32[T, 8]):
    a = silu(x)
    b = mul(a, y)
    c = silu(b)
    d = mul(c, y)
    return d"""

HEAD = """from dataclasses import dataclass
from irloom.ir.ops import neg, relu, silu, sin
from irloom.passes import Changes, Pass, Rewrite, apply, spend

"""


def written(path, body, rules=""):
    """The pass of a file."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(f"{HEAD}{rules}\n@dataclass(frozen=True)\nclass Mine(Pass):\n    'Mine.'\n{lines}\n")
    found = Registry().register_file(path)
    assert found
    return found


class Refused:
    """What a pipeline says that runs a pass whose body is given; paths are file names in it."""

    error: IrloomError

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, body, before=(), rules="", program=PROGRAM, then=""):
        mine = written(self.folder / "mine.py", body, rules)
        after = [written(self.folder / "then.py", then)()] if then else []
        with pytest.raises(IrloomError) as caught:
            run_pipeline(parse(program), [*before, mine(), *after])
        self.error = caught.value
        return str(caught.value).replace(f"{self.folder}/", "")


@pytest.fixture
def refused(tmp_path):
    return Refused(tmp_path)


def test_what_it_raises_is_named_with_its_own_line(refused):
    said = refused("def run(self, m):\n    return self.count(m)\n\ndef count(self, m):\n    return m.heads")
    assert said == (
        "pass mine raised AttributeError: 'Module' object has no attribute 'heads'\n"
        "hint: `irloom --debug` shows the traceback\n"
        "  --> mine.py:13 in count"
    )
    assert isinstance(refused.error.__cause__, AttributeError)


def test_a_pass_does_not_end_the_process(refused):
    assert refused("def run(self, m):\n    raise SystemExit(3)") == (
        "pass mine raised SystemExit: 3\nhint: `irloom --debug` shows the traceback\n  --> mine.py:10 in run"
    )


def test_what_a_rule_raises_is_named_with_the_place_of_the_match(refused):
    rule = "class Loud(Rewrite):\n    def match(self, x):\n        return silu(x)\n"
    rule += "    def replace(self, x):\n        return relu(x, 1 / 0)\n"
    assert refused("def run(self, m):\n    return apply(m, [Loud()])", rules=rule) == (
        "pass mine raised ZeroDivisionError: division by zero\n"
        "hint: `irloom --debug` shows the traceback\n"
        "  --> rule Loud at main.a\n"
        "  --> mine.py:9 in replace"
    )


def test_a_raised_error_of_irloom_keeps_its_words(refused):
    assert refused("def run(self, m):\n    return Changes([m.main.param('z').name])") == (
        "function 'main' has no parameter 'z'\nhint: it has x, y\n  --> in pass mine"
    )


def test_what_is_no_report_of_changes_is_refused(refused):
    assert refused("def run(self, m):\n    pass") == (
        "pass mine returned None, not Changes\nhint: return what `apply` gives: Changes\n  --> mine.py:9"
    )


def test_a_change_that_is_not_told_is_shown(refused):
    assert refused("def run(self, m):\n    m.main.nodes[0].op = relu\n    return Changes()") == (
        "pass mine says that it changed nothing, but in main `a: f32[T, 8] = silu(x)` became "
        "`a: f32[T, 8] = relu(x)`\n"
        "hint: count every change: Changes([place, ...])\n"
        "  --> mine.py:9"
    )


def test_what_is_no_program_at_all_is_refused(refused):
    assert refused("def run(self, m):\n    m.main.nodes[0].attrs = None\n    return Changes(['main.a'])") == (
        "pass mine left what is no program: AttributeError: 'NoneType' object has no attribute 'items'\n"
        "hint: operands are values, numbers and None; results are values; attributes are plain\n"
        "  --> mine.py:9"
    )


def test_a_node_makes_as_many_values_as_its_op(refused):
    more = "n = m.main.nodes[3]\n    n.results.append(type(n.result)('e', n.result.type))"
    assert refused(f"def run(self, m):\n    {more}\n    return Changes(['main.d'])") == (
        "mul makes 1 values, the node d, e\n  --> rule types-follow, function main\n  --> after pass mine"
    )


def test_changes_that_are_none_show_in_the_record(tmp_path):
    idle = written(tmp_path / "mine.py", "def run(self, m):\n    return Changes(['main.a: nothing'])")
    _, record = run_pipeline(parse(PROGRAM), [idle(), "canonicalize, fuse-mlp"])
    assert [s.idle for s in record.steps] == [True, False, False]
    assert str(record.steps[0]).startswith("mine: 1 changes told, but the program is as it was (")


def test_a_malformed_program_names_the_pass_and_the_change_that_broke_it(refused):
    body = """def run(self, m):
    changes = Changes()
    for n in m.main.nodes:
        if n.op is silu and spend():
            changes.places.append(f"main.{n.result.name}: cut")
            n.args = n.args if n.result.name == "a" else [m.main.nodes[-1].result]
    return changes"""
    assert refused(body) == (
        "d is used by c before it is defined\n"
        "  --> rule defined-before-use, function main\n"
        "  --> main.c: cut\n"
        "  --> after pass mine"
    )


@dataclass(frozen=True)
class Hushed(Pass):
    """Every sine as its negation, of which nothing may be left."""

    preserves = ("*",)

    def run(self, m):
        return apply(m, [Hush()])

    def holds(self, m):
        loud = [n.result.name for n in m.main.nodes if n.op is sin]
        return f"main.{loud[0]} is loud" if loud else None


class Hush(Rewrite):
    def match(self, x):
        return sin(x)

    def replace(self, x):
        return neg(x)


SINE = "def main(x: f32[T]):\n    y = sin(x)\n    return y"
UNDO = "def run(self, m):\n    m.main.nodes[0].op = sin\n    return Changes(['main.y: as it was'])"


def test_work_that_it_says_it_preserves_is_looked_after(refused):
    assert refused(UNDO, [Hushed()], program=SINE) == (
        "pass mine undoes test-guard, which it says it preserves: main.y is loud\n"
        'hint: preserves = ("*", "-test-guard") says that it does\n'
        "  --> mine.py:9"
    )


def test_work_that_it_says_it_undoes_may_not_be_required_behind_it(refused):
    undone = f'preserves = ("*", "-test-guard")\n{UNDO}\n'
    needs = "requires = ('test-guard',)\ndef run(self, m):\n    return Changes()"
    assert refused(f"{undone}", [Hushed()], program=SINE, then=needs) == (
        "then requires test-guard, which mine has undone\nhint: put test-guard after mine"
    )


def test_what_never_held_is_not_looked_after():
    @dataclass(frozen=True)
    class Impossible(Hushed):
        def holds(self, m):
            return "it cannot"

    m, _ = run_pipeline(parse(SINE), [Impossible(), Hushed()])
    assert [n.op for n in m.main.nodes] == [neg]


def test_a_mistake_in_holds_is_named_like_one_in_run(refused):
    said = refused("def run(self, m):\n    return Changes()\n\ndef holds(self, m):\n    return m.heads")
    assert (
        said.splitlines()[0] == "mine.holds raised AttributeError: 'Module' object has no attribute 'heads'"
    )
    assert said.endswith("  --> mine.py:13 in holds")


LAYER = """
    q{i} = linear(x{i}, w{i})  # layers.{i}.q
    h{i} = reshape(q{i}, dims=(T, 2, 16))  # layers.{i}
    a{i} = attention(h{i}, h{i}, h{i}, seqs, scale=0.25)  # layers.{i}
    o{i} = reshape(a{i}, dims=(T, 32))  # layers.{i}
    x{n} = add(x{i}, o{i})  # layers.{i}"""
MODEL = f"""def main(
    ids: i32[T], seqs: seqs[T, S], e: f32[64, 32] = weight("e"), w0: f32[32, 32] = weight("layers.0.w"),
    w1: f32[32, 32] = weight("layers.1.w")
):
    x0 = embedding(ids, e){LAYER.format(i=0, n=1)}{LAYER.format(i=1, n=2)}
    logits = linear(x2, e)
    return logits"""


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("gather-logits", "main returns logits: f32[T, 64], a row for every token"),
        ("outline", "main calls no layer"),
        ("kv-cache", "layer.a0 reads no cache"),
        ("kv-plan(8)", "layer.kv is paged[f32, 16](values=0), not paged[f32, 8](values=0)"),
        ("quantize", "no weight is quantized"),
        ("plan-memory", "layer.q0 has no buffer"),
    ],
)
def test_passes_say_whether_their_work_holds(name, lacks):
    every = ["gather-logits", "outline", "kv-cache", "kv-plan(8)", "quantize", "plan-memory"]
    (p,) = parse_pipeline(name)
    before, _ = run_pipeline(parse(MODEL), every[: every.index(name)])
    assert p.holds(before) == lacks
    after, _ = run_pipeline(before, [p])
    assert p.holds(after) is None


def test_inlining_says_that_it_undoes_outlining():
    m, _ = run_pipeline(parse(MODEL), "outline, inline, outline")
    assert list(m.funcs) == ["layer", "main"]


def test_a_pass_that_is_its_own_rule_is_located_in_its_own_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from irloom import RewritePass\nfrom irloom.ir.ops import silu\n\n\nclass Own(RewritePass):\n"
        "    def match(self, x):\n        return silu(x)\n\n    def replace(self, x):\n        return 1 / 0\n"
    )
    own = Registry().register_file(file)
    assert own
    with pytest.raises(IrloomError, match=r"own\.py:10 in replace"):
        run_pipeline(parse(PROGRAM), [own()])
