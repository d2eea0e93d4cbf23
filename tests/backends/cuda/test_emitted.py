"""A gate is rounded by the product that makes it, or by the one that reads it: to the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irloom.backends.cuda import products
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.products import Product, Way, product
from irloom.backends.cuda.quantized import Operand, Quantized, within
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import Quant
from irloom.ir.parse import parse
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.product_cases import BLOCK, ROW, TOKEN_GROUP, Case, close, rounded
from tests.backends.cuda.test_quantized_engine import FewBits
from tests.backends.serving import LIMITS

SCHEMES = {"rows": (ROW, ROW), "blocks": (BLOCK, TOKEN_GROUP)}
WIDTH = 128


@pytest.fixture(params=SCHEMES)
def mlp(request: pytest.FixtureRequest) -> Mlp:
    return Mlp(*SCHEMES[request.param])


class Mlp:
    """A gate and what it lets through of 40 rows, rounded, times a weight."""

    def __init__(self, weight: Quant, quant: Quant, dtype: torch.dtype = torch.bfloat16) -> None:
        self.quant, self.dtype = quant, dtype
        gate = Form(eps=1e-5, act="silu", gated=True, quant=quant, emits=quant)
        self.first = Case(40, WIDTH, 128, weight, form=gate, norm=True, dtype=dtype)
        self.second = Case(40, 32, WIDTH, weight, form=Form(quant=quant, emitted=True), dtype=dtype)
        self.given, self.gated = self.first.operands()
        self.down = self.second.operands()[0][1]

    def run(self, rows: slice = slice(None)) -> torch.Tensor:
        """The result for some rows."""
        x, up, _, _, norm = self.given
        assert isinstance(x, torch.Tensor) and isinstance(norm, torch.Tensor)
        assert up is not None and self.down is not None
        x, work = x[rows], Workspace(DEVICE)
        between = torch.full((len(x), WIDTH), float("nan"), dtype=self.dtype, device=DEVICE)
        out = torch.full((len(x), 32), float("nan"), dtype=self.dtype, device=DEVICE)
        product(between, x, up, None, None, norm, form=self.first.form, work=work)
        product(out, between, self.down, None, None, None, form=self.second.form, work=work)
        return out

    def expected(self) -> torch.Tensor:
        """The result in f64."""
        assert isinstance(self.down, Quantized)
        return rounded(self.gated.float(), self.quant)[1] @ self.down.dequantized(torch.float64).cpu().T


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What each product that runs takes and gives: trials, too, where there is a clock."""
    seen: list[tuple[str, str]] = []
    run = Product.run

    def noted(p: Product, way: Way, work: Workspace) -> None:
        seen.append((_kind(p.x), _kind(p.out)))
        run(p, way, work)

    monkeypatch.setattr(Product, "run", noted)
    return seen


def _kind(x: Operand) -> str:
    return "rounded" if isinstance(x, Quantized) else "plain"


def test_of_few_rows_a_product_rounds_what_it_reads(mlp: Mlp, rounds: list[tuple[str, str]]) -> None:
    close(mlp.run(slice(0, 16)), mlp.expected()[:16], mlp.dtype, 24.0)
    rounds.clear()
    mlp.run(slice(0, 16))
    assert rounds == [("plain", "plain"), ("plain", "plain")]


def test_of_more_rows_a_product_rounds_what_it_makes(mlp: Mlp, rounds: list[tuple[str, str]]) -> None:
    close(mlp.run(), mlp.expected(), mlp.dtype, 24.0)
    rounds.clear()
    mlp.run()
    assert rounds == [("plain", "rounded"), ("rounded", "plain")]


def test_both_round_to_the_same_bits(mlp: Mlp, monkeypatch: pytest.MonkeyPatch) -> None:
    early = mlp.run()
    monkeypatch.setattr(products, "SMALL", 64)
    assert torch.equal(mlp.run(), early)


def test_parts_of_many_rows_are_rounded_one_by_one(mlp: Mlp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part may have so few rows that it is not rounded early."""
    every = mlp.run()
    monkeypatch.setattr(products, "CHUNK", 24)
    seen: list[int] = []
    monkeypatch.setattr(products, "within", lambda x, quant: seen.append(len(x)) or within(x, quant))
    close(mlp.run(), every.double().cpu(), mlp.dtype)
    assert seen == [24, 24]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_elements_are_rounded_from_what_they_are(dtype: torch.dtype) -> None:
    """A gate may lie on the other side of where two entries of eight bits part: in f32 as well, since tensor
    cores keep fewer bits of a sum of such entries.
    """
    mlp = Mlp(ROW, ROW, dtype)
    close(mlp.run(), mlp.expected(), torch.float16, 32.0)


def test_no_element_is_lost_where_rows_come_rounded() -> None:
    """Between a product that takes rounded rows and one that does nothing is plain but the gate."""
    case = Case(18, 32, 64, ROW, ROW, Form(act="silu", gated=True, emits=ROW), dtype=torch.float16)
    (x, weight, *_), _ = case.operands()
    assert x is not None and weight is not None
    out = torch.empty(18, 32, dtype=torch.float16, device=DEVICE)
    p = Product(out, x, weight, None, None, None, case.form)
    assert p.placed.element == torch.float16
    assert p.placed.key != replace(p, out=out.bfloat16()).placed.key


@pytest.mark.parametrize("quant", [ROW, TOKEN_GROUP])
def test_rounded_rows_lie_within_plain_ones(quant: Quant) -> None:
    x = torch.zeros(40, 256, dtype=torch.bfloat16, device=DEVICE)
    q = within(x[8:], quant)
    assert q.values.shape == (32, 256) and q.scales.shape == (32, 256 // (quant.group or 256))
    assert q.values.data_ptr() == x[8:].data_ptr() and q.scales.data_ptr() % 16 == 0
    assert q.scales.stride()[0] == 1
    end = q.scales.data_ptr() + q.scales.numel() * 4
    assert q.values.data_ptr() + 32 * 256 <= q.scales.data_ptr() and end <= x.data_ptr() + x.nbytes


def test_a_layer_says_who_rounds() -> None:
    text = str(FewBits.rounded("llama", "quantize(fp8)").program())
    assert "gated=True, quant=f8row, emits=f8row)" in text
    assert "form=Form(quant=f8row, emitted=True)" in text
    assert text.count("emits") == text.count("emitted") == 1


PROGRAM = """
# irloom 1
f8row = quant(f8e4m3, group=0, scale=f32)
T: dim[1, 64]

def main(
    x: bf16[T, 32],
    up: bf16[64, 32] = weight("up"),
    down: f8row[32, 32] = weight("down"),
) -> bf16[T, 32]:
    both: bf16[T, 64] = linear(x, up)
    gate, factor = split(both, dim=-1, sizes=(32, 32))
    gated: bf16[T, 32] = silu_mul(gate, factor)
    q: f8row[T, 32] = quantize(gated, to=f8row)
    y: bf16[T, 32] = linear(q, down, elem=bf16)
    return y
"""


def test_a_second_reader_of_the_gate_finds_it_plain() -> None:
    assert "emits=f8row" in str(lower(parse(PROGRAM)))
    also = PROGRAM.replace("    return y", "    z: bf16[T, 32] = add(gated, y)\n    return z")
    assert "emit" not in str(lower(parse(also)))


def test_rows_that_two_products_read_are_rounded_by_neither() -> None:
    also = "    w: bf16[T, 32] = linear(q, down, elem=bf16)\n    z: bf16[T, 32] = add(w, y)\n    return z"
    text = str(lower(parse(PROGRAM.replace("    return y", also))))
    assert "emit" not in text and "    quantize(q, gated)" in text


@pytest.mark.slow
def test_an_engine_gives_the_interpreters_logits_where_gates_are_rounded_early(
    monkeypatch: pytest.MonkeyPatch, rounds: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(products, "SMALL", 4)
    model = FewBits.rounded("llama", "quantize(fp8)")
    engine = model.engine(model.program(), LIMITS, DEVICE)
    served = model.served(engine, model.traffic(3, requests=2, most=2))
    assert served.error < 2e-4, served.where
    assert {("plain", "rounded"), ("rounded", "plain"), ("plain", "plain")} <= {*rounds}
