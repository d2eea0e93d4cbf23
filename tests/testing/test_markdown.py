"""The runner of Markdown tests: numbers come first, and `--update` never blesses a change of them."""

import pytest

from irloom.passes import PASSES

pytest_plugins = ["pytester"]

PLUGINS = ("-p", "irloom.testing.plugin", "-p", "no:cacheprovider", "-p", "no:xdist")

GOOD = """# Gated
```py
def main(g: f32[T, 8], u: f32[T, 8]):
    s = silu(g)
    y = mul(s, u)
    return y
```
{fence}
{expected}
```
"""
FUSED = """def main(
    g: f32[T, 8],
    u: f32[T, 8],
) -> f32[T, 8]:
    y: f32[T, 8] = silu_mul(g, u)
    return y"""
WRONG = """
from dataclasses import dataclass
from irloom.ir.ops import neg, silu
from irloom.passes import Pass, Rewrite, apply

class Rule(Rewrite):
    def match(self, x):
        return silu(x)
    def replace(self, x):
        return neg(x)

@dataclass(frozen=True)
class Wrong(Pass):
    'A pass that computes something else.'
    def run(self, m):
        return apply(m, [Rule()])
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run one Markdown file through the plugin; the outcome, and the file as it is then."""
    monkeypatch.setattr(PASSES, "_files", {})
    path = pytester.path / "wrong.md"

    def go(text, *args):
        path.write_text(text)
        result = pytester.runpytest_inprocess(*PLUGINS, path, *args)
        return result, path.read_text()

    return go


def case(expected, fence="```py fuse-mlp"):
    return GOOD.format(expected=expected, fence=fence)


def test_a_program_that_comes_out_as_written_passes(run):
    result, _ = run(case(FUSED))
    result.assert_outcomes(passed=1)


def test_another_text_fails_with_a_diff_and_leaves_the_file(run):
    result, text = run(case("def main():"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*+    y: f32?T, 8? = silu_mul(g, u)"])
    assert text == case("def main():")


def test_update_writes_the_text_when_numbers_agree(run):
    result, text = run(case("def main():"), "--update")
    result.assert_outcomes(passed=1)
    assert text == case(FUSED)


def test_update_never_blesses_a_change_of_numbers(run, pytester):
    (pytester.path / "wrong.py").write_text(WRONG)
    before = case("def main():", "```py wrong")
    result, text = run(before, "--update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*numbers differ after wrong: output 0*"])
    assert text == before


def test_update_of_one_heading_leaves_the_others_in_place(run):
    result, text = run(case("def main():") + case("def main():") + case(FUSED), "--update")
    result.assert_outcomes(passed=3)
    assert text == case(FUSED) * 3


def test_a_refused_program_shows_its_whole_message(run):
    program = "def main(x: f32[T, 8]):\n    y = silv(x)\n    return y"
    body = f"# Wrong\n```py error\n{program}\n```\n```error\n{{}}\n```\n"
    said = "unknown op 'silv'\nhint: did you mean 'silu'?\n  --> line 2\n   | y = silv(x)"
    run(body.format(said))[0].assert_outcomes(passed=1)
    run(body.format("unknown op 'silv'"))[0].assert_outcomes(failed=1)


def test_a_program_that_should_be_refused_and_is_not_fails(run):
    text = "# Fine\n```py error\ndef main(x: f32[T, 8]):\n    y = silu(x)\n    return y\n```\n"
    run(text)[0].assert_outcomes(failed=1)


def test_a_refused_pipeline_and_near_misses_have_blocks_of_their_own(run):
    text = (
        case(FUSED)
        + "```near\n```\n```error fuse_mlp\nno pass 'fuse_mlp'\nhint: did you mean 'fuse-mlp'?\n```\n"
    )
    run(text)[0].assert_outcomes(passed=1)


@pytest.mark.parametrize("fence", ["", "py", "python"])
def test_a_page_without_a_pipeline_is_prose(pytester, fence):
    pytester.path.joinpath("readme.md").write_text(f"# Only words\n\n```{fence}\nnot a program\n```\n")
    result = pytester.runpytest_inprocess(*PLUGINS)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_heading_without_a_program_is_prose(run):
    result, _ = run(f"# Only words\n\n```\nnot a program\n```\n{case(FUSED)}")
    result.assert_outcomes(passed=1)


DECAY_PY = '''"""Decay a row by its own rates, as one kernel."""
import torch
from irloom import RewritePass, op
from irloom.backends.cpu import kernel
from irloom.ir.ops import exp, mul, neg

@kernel("""
for (int64_t t = 0; t < rows; t++)
  for (int64_t i = 0; i < n; i++) out[t][i] = std::exp(-rate[t][i]) * x[t][i];
""")
@op("*b n, *b n -> *b n")
def decayed(x, rate):
    """``exp(-rate) * x``."""
    return torch.exp(-rate) * x

class Decay(RewritePass):
    """Joins the cpu pipeline by itself."""
    targets = ("cpu",)
    after, before = ("canonicalize",), ("plan-memory",)

    def match(self, x, rate):
        return mul(exp(neg(rate)), x)

    def replace(self, x, rate):
        return decayed(x, rate)
'''
DECAY_MD = """# A decay is one op
```py
def main(x: f32[T, 8], rate: f32[T, 8]):
    a = neg(rate)
    b = exp(a)
    y = mul(b, x)
    return y
```
```py decay
def main(
    x: f32[T, 8],
    rate: f32[T, 8],
) -> f32[T, 8]:
    y: f32[T, 8] = decayed(x, rate)
    return y
```
"""


def test_a_pass_its_op_its_kernel_and_its_test_take_forty_lines(pytester):
    """And nothing is installed: the pass lies beside its test."""
    assert len([line for line in (DECAY_PY + DECAY_MD).splitlines() if line]) <= 40
    (pytester.path / "decay.py").write_text(DECAY_PY)
    (pytester.path / "decay.md").write_text(DECAY_MD)
    lines = "import irloom\nfrom irloom.testing import check_kernel\n"
    check = "\ndef test_kernel():\n    from irloom.ir.op import OPS\n    check_kernel(OPS['decayed'])\n"
    (pytester.path / "test_z.py").write_text(lines + check)
    result = pytester.runpytest_subprocess(*PLUGINS)
    result.assert_outcomes(passed=2)
