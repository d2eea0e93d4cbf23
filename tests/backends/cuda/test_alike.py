"""The batch-invariant setting: a row's logits are the same to the bit, whatever else is in its step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from irloom.backends.cuda.alike import rows_alike
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.products import product
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import RequestError
from irloom.zoo.serve import Script
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.near import columns, normal, poisoned, quantized
from tests.backends.cuda.product_cases import in_fragments, rounded
from tests.backends.cuda.serving import Counted, Model
from tests.backends.cuda.test_emitted import SCHEMES, Mlp
from tests.backends.serving import LIMITS

MORE = ["qwen3_moe", "gemma3_text", "gpt_oss", "deepseek_v3", "mamba2", "qwen3_next", "jamba"]
SETTING = replace(LIMITS, batch_invariant=True)


@pytest.fixture(autouse=True)
def a_row_of_a_tile_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies by BLAS, where a row's bits hang on its place in a tile; a GPU's do not."""

    def product(a: Any, b: Any, **_: Any) -> Any:
        return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)

    monkeypatch.setattr(numpy, "matmul", product)


def alone(model: Model, engine: Counted, tokens: torch.Tensor) -> torch.Tensor:
    """The logits [T, vocab] of a sequence that comes token by token, with nobody beside it."""
    first = len(getattr(engine, "batches", []))
    engine.kept = []
    model.served(engine, [Script(tokens, 1, torch.zeros(len(tokens), engine.vocab))])
    assert len(engine.batches) - first == len(tokens)
    return torch.cat(engine.kept)


def differ(family: str) -> None:
    """Requests in chunks beside each other, and what each of their tokens gave alone."""
    model = Model.of(family)
    engine = model.engine(model.program(), SETTING, DEVICE)
    given = ((9, 8, 0), (4, 2, 1), (3, 3, 1))  # tokens, the prompt, and when it arrives
    drawn = [(model.specimen.draw(length, i), prompt, at) for i, (length, prompt, at) in enumerate(given)]
    scripts = [Script(t, prompt, alone(model, engine, t), at) for t, prompt, at in drawn]
    found = model.served(engine, scripts)
    assert found.error == 0.0, found.where


def test_logits_alone_and_in_any_batch_are_the_same_to_the_bit() -> None:
    differ("llama")


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_so_are_those_of_other_families(family: str) -> None:
    differ(family)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_product_does_not_see_the_others(dtype: torch.dtype) -> None:
    unseen(normal(1, 48, 96, dtype=dtype), dtype)


def test_nor_where_a_weight_of_four_bits_lies_in_fragments() -> None:
    weight, _ = rounded(normal(1, 48, 96).cpu(), Quant("i4g32", ELEMS["i4"], 32, ELEMS["bf16"]))
    unseen(in_fragments(weight), torch.bfloat16)


def unseen(weight: Operand, dtype: torch.dtype) -> None:
    """Rows times a weight [48, 96] give the same alone, with all others and with some."""
    norm, x = normal(2, 96, dtype=dtype), columns(3, 37, 96, dtype=dtype)
    made: list[torch.Tensor] = []
    for rows in (x, x[5:6], x[5:25]):
        out = poisoned(len(rows), 48, dtype=dtype)
        with rows_alike():
            product(out, rows, weight, None, None, norm, form=Form(eps=1e-5), work=Workspace(DEVICE))
        made.append(out)
    assert torch.equal(made[0][5:6], made[1])
    assert torch.equal(made[0][5:25], made[2])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_does_not_see_who_rounds_it(scheme: str) -> None:
    """Of few rows the product that reads a gate does, of more the one that makes it."""
    mlp = Mlp(*SCHEMES[scheme])
    with rows_alike():
        every = mlp.run()
        for some in (slice(5, 6), slice(3, 19), slice(3, 25)):
            assert torch.equal(mlp.run(some), every[some])


def test_what_has_no_such_product_is_refused() -> None:
    """Weights of fp8 by rows that are not."""
    weight = quantized(32, 64, "f8e4m3", 0)
    with rows_alike(), pytest.raises(RequestError, match="is the same for any number of rows"):
        product(
            poisoned(3, 32), normal(2, 3, 64), weight, None, None, None, form=Form(), work=Workspace(DEVICE)
        )
