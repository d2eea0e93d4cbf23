"""What an op's author is told when its body, or its kernel, is not what is declared of it."""

import re
from typing import Any

import pytest
import torch

from irloom import IRError, KernelError, op
from irloom.backends.cpu import kernel
from irloom.backends.cpu.extern import KERNELS
from irloom.backends.cpu.program import LOWERINGS
from irloom.ir.op import OPS, Op
from irloom.testing import check_kernel, check_op
from irloom.testing.trial import CannotTry

pytest_plugins = ["pytester"]

PLUGINS = ("-p", "irloom.testing.plugin", "-p", "no:cacheprovider", "-p", "no:xdist")


def wrong(o: Op, *given: Any, **attrs: Any) -> str:
    """What is said of an op, which is then forgotten: else the plugin finds it wrong too."""
    del OPS._ops[o.name]
    with pytest.raises(IRError) as caught:
        check_op(o, *given, **attrs)
    assert caught.value.places[-1] == f"at {o.place}"
    return str(caught.value)


def test_results_have_other_dims():
    @op("*b n, *b n -> *b n")
    def half(x, gate):
        """Half of it."""
        return (x * gate)[..., : (x.shape[-1] + 1) // 2]

    said = wrong(half)
    assert re.match(r"half: its body makes f32\[4, .*\], by its signature it is f32\[4, ", said)


def test_results_have_another_element():
    @op("*b n -> *b n")
    def widened(x):
        """In f32 whatever it was."""
        return x.float() * 2

    assert "its body makes f32[" in (said := wrong(widened)) and "it is bf16[" in said


def test_there_are_too_few_results():
    @op("*b n -> *b n, *b n")
    def twins(x):
        """Twice the same, it says."""
        return x * 1

    assert re.search(r"its body makes (f32[^\]]+\]), by its signature it is \1, \1\n", wrong(twins))


def test_an_absent_operand_is_not_thought_of():
    @op("*b n, n? -> *b n")
    def scaled(x, by=None):
        """Times a weight that may be absent."""
        return x * by

    assert "its body fails: TypeError: unsupported operand" in (said := wrong(scaled))
    assert "hint: say in `.verify` what it does not take" in said


def test_an_operand_is_written_into():
    @op("*b n -> *b n")
    def doubled(x):
        """In place."""
        return x.mul_(2)

    assert "its body writes into `x`" in wrong(doubled)


def test_a_free_row_depends_on_others():
    @op("*b n -> *b n")
    def centred(x):
        """Less the mean of all rows."""
        return x - x.mean(0, keepdim=True)

    assert "row 0 alone is not what it is among" in wrong(centred)


def test_an_op_is_not_commutative():
    @op("~b, ~b -> ~b", commutative=True)
    def less(a, b):
        """One less the other."""
        return a - b

    assert "it is not commutative" in wrong(less)


def test_a_hook_says_what_the_body_takes():
    @op("*b d -> *b d")
    def rotated(x):
        """Halves exchanged."""
        return torch.cat([*reversed(x.chunk(2, -1))], -1) if x.shape[-1] % 2 == 0 else x[..., :0]

    assert "its body makes " in wrong(rotated)

    @rotated.verify
    def _(types, attrs):
        if types[0].dims[-1] % 2:
            raise IRError("rotated: an odd number of entries")

    check_op(rotated)


def test_a_hook_that_fails():
    @op("*b d -> *b d")
    def hooked(x):
        """The same."""
        return x * 1

    hooked.verify(lambda types, attrs: types[1])
    del OPS._ops["hooked"]
    with pytest.raises(IRError) as caught:
        check_op(hooked)
    assert caught.value.message == "hooked: a hook raised IndexError: tuple index out of range"
    assert caught.value.places[-1].startswith(f"at {__file__}:")


def test_an_attribute_without_a_default_is_given():
    @op("*b d -> *b d")
    def shifted(x, *, by: int):
        """Moved along."""
        return x.roll(by, -1)

    with pytest.raises(CannotTry, match="attribute `by` has no default"):
        check_op(shifted)
    check_op(shifted, by=[1, -2])


def test_what_a_signature_leaves_open_is_given():
    @op("*b %v, *b n -> *b n")
    def picked(x, index, *, back: bool = False):
        """Entries of a row."""
        return torch.gather(x, -1, index.long() - (1 if back else 0))

    with pytest.raises(CannotTry, match="one of its operands holds indices"):
        check_op(picked)
    check_op(picked, "f32[T, 5]", "i32[T, 3]", back=[True, False])


BAD_KERNELS = {
    "out[t][i] = x[t][i];": "`out` at (",
    "if (t % 2 == 0) out[t][i] = 2 * x[t][i];": "it leaves ",
    "out[t][i] = 2 * x[t][i]; if (i + 1 == n) out[t][n] = 0;": "it writes beside the rows of `out`",
    "out[t][i] = 2 * x[t][i]; ((float*)x[t])[i] = 0;": "it writes into operand `x`",
    "out[t][i] = (2 + (rows > 1) * 1e-6f) * x[t][i];": "alone is not what it is among",
}


@pytest.mark.parametrize("line", BAD_KERNELS)
def test_a_kernel_that_is_not_its_body(line: str):
    @kernel(f"for (int64_t t = 0; t < rows; t++) for (int64_t i = 0; i < n; i++) {{ {line} }}")
    @op("*b n -> *b n")
    def doubled(x):
        """Twice ``x``."""
        return 2 * x

    check_op(doubled)
    with pytest.raises(KernelError, match=r"op doubled: its C\+\+ kernel is not its body") as caught:
        check_kernel(doubled)
    assert BAD_KERNELS[line] in str(caught.value)
    for registry in (OPS._ops, KERNELS, LOWERINGS):
        del registry["doubled"]


def test_an_op_that_registers_under_pytest_is_checked(pytester: pytest.Pytester):
    """At import as in a test; what a test has to give operands for is left to it."""
    pytester.makepyfile(
        test_import="""
        from irloom import op

        @op("*b n -> *b n")
        def at_import(x):
            "Less."
            return x[..., 1:]

        def test_nothing():
            pass
        """,
        test_call="""
        def test_defines():
            from irloom import op

            @op("*b n, n -> *b n")
            def in_call(x, w):
                "More."
                return (x * w).repeat_interleave(2, -1)

        def test_opaque():
            from irloom import op

            @op("_ -> *b n")
            def opaque(x):
                "Something."
        """,
    )
    result = pytester.runpytest_subprocess(*PLUGINS, "test_import.py", "test_call.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["at_import: its body makes f32*, by its signature it is f32*"])
    result = pytester.runpytest_subprocess(*PLUGINS, "test_call.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["in_call: its body makes *"])
