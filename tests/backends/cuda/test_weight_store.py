"""Weights of an engine: computed or linked when it is built, all there when it opens."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import quiet
from irloom.backends.cuda import transfer, weight_store
from irloom.backends.cuda.extents import Extent, cut, extents
from irloom.backends.cuda.fragments import FORM, plain, span_of
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.transfer import Copy
from irloom.backends.cuda.weight_store import Wanted
from irloom.frontends.hf.recipes import Expressed, MappedCheckpoint
from irloom.ir.checkpoint import RandomCheckpoint, SafetensorsCheckpoint
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import CheckpointError, EngineMismatch
from irloom.ir.parse import parse
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.types import Type
from irloom.ir.weight_expr import Concat, Reshape, Tensor

from .device import DEVICE

BF16, F32, F8 = ELEMS["bf16"], ELEMS["f32"], ELEMS["f8e4m3"]
SCHEMES = [
    Quant("f8row", F8, 0, F32),
    Quant("f8b16", F8, 16, F32, rows=16),
    Quant("f8tensor", F8, 0, F32, rows=0),
    Quant("i4g16", ELEMS["i4"], 16, BF16),
    Quant("u4g16", ELEMS["u4"], 16, BF16, ELEMS["u4"]),
]
HEADER = "".join(f"{q.name} = {q.declaration()}\n" for q in SCHEMES)
PROJECTIONS = 'concat(weight("l.{i}.q"), weight("l.{i}.k"), slice(weight("l.{i}.v"), 0, 3, 11), dim=0)'
LINKED = {
    "embed": ("bf16[50, 32]", 'weight("embed")'),
    "head": ("bf16[50, 32]", 'weight("embed")'),
    "norm": ("bf16[32]", 'weight("norm")'),
    "qkv": ("bf16[56, 32]", PROJECTIONS),
    "heads": ("bf16[4, 8, 32]", 'reshape(weight("l.{i}.q"), (4, 8, 32))'),
}
COMPUTED = {
    "wide": ("f32[32]", 'weight("norm")'),
    "turned": ("bf16[32, 16]", 'transpose(weight("l.{i}.k"))'),
    "beside": ("bf16[32, 64]", 'concat(weight("l.{i}.q"), weight("l.{i}.q"), dim=1)'),
    **{q.name: (f"{q.name}[56, 32]", f"quantize({PROJECTIONS}, {q.name})") for q in SCHEMES},
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> SafetensorsCheckpoint:
    dims = {"embed": (50, 32), "norm": (32,)}
    dims |= {f"l.{i}.{n}": (rows, 32) for i in range(3) for n, rows in {"q": 32, "k": 16, "v": 16}.items()}
    source = RandomCheckpoint(7, dims, BF16)
    save_file({name: source.read(name) for name in dims}, tmp_path / "model.safetensors")
    return SafetensorsCheckpoint(tmp_path / "model.safetensors")


def wanted(weights: dict[str, tuple[str, str]]) -> list[Wanted]:
    """Each for all layers that it has."""
    params = ", ".join(f"{name}: {t} = {expr}" for name, (t, expr) in weights.items())
    f = parse(f"{HEADER}\ndef layer(x: f32[T], {params}):\n    return x\n").funcs["layer"]
    out: list[Wanted] = []
    for p in f.weights:
        assert p.weight is not None
        layers = range(3) if "{i}" in weights[p.name][1] else [None]
        out += [Wanted(f"{p.name}.{i}", p.weight, i, p.type) for i in layers]
    return out


def built(folder: Path, checkpoint, weights: list[Wanted]) -> EngineReader:
    with EngineWriter(folder, Manifest("cuda", "tiny", [], {}, {})) as out:
        weight_store.write(out, weights, checkpoint, quiet, device=DEVICE)
    return EngineReader(folder)


def same(got, want) -> bool:
    if isinstance(got, Quantized):
        assert isinstance(want, QuantizedTensor)
        zeros = (got.zeros is None and want.zeros is None) or same(got.zeros, want.zeros)
        return same(got.values, want.packed()) and same(got.scales, want.scales) and zeros
    return got.dtype == want.dtype and torch.equal(got.cpu().float(), want.float())


@pytest.mark.parametrize("shard", [100, 5000, weight_store.SHARD])
def test_what_is_read_is_what_the_expressions_give(tmp_path, checkpoint, monkeypatch, shard):
    monkeypatch.setattr(weight_store, "SHARD", shard)
    monkeypatch.setattr(transfer, "BLOCK", 700)
    weights = wanted({**LINKED, **COMPUTED})
    engine = built(tmp_path / "engine", checkpoint, weights)
    got = weight_store.read(engine, weights, DEVICE).wait()
    for w in weights:
        assert same(got[w.name], w.value(checkpoint)), w.name
    assert all(t.data_ptr() % 64 == 0 for t in got.values() if isinstance(t, torch.Tensor))
    embed, head = got["embed.None"], got["head.None"]
    assert isinstance(embed, torch.Tensor) and isinstance(head, torch.Tensor)
    assert embed.data_ptr() == head.data_ptr()


def test_bytes_that_lie_in_the_checkpoint_are_not_stored_again(tmp_path, checkpoint):
    weights = wanted(LINKED)
    engine = built(tmp_path / "engine", checkpoint, weights)
    assert not [part for part in engine.manifest.parts if part.startswith("weights/")]
    assert {link.file for link in engine.manifest.links.values()} == {str(checkpoint.path)}
    assert weight_store.stored_bytes(engine) == sum(w.nbytes for w in weights if w.name != "head.None")


def test_shards_are_files_of_safetensors(tmp_path, checkpoint):
    weights = wanted(COMPUTED)
    engine = built(tmp_path / "engine", checkpoint, weights)
    stored = load_file(engine.file("weights/0000.safetensors"))
    assert set(stored) == {name for w in weights for name in w.tensors}
    assert stored["i4g16.0:values"].shape == (56, 16)


def test_a_checkpoint_that_changed_is_refused(tmp_path, checkpoint):
    built(tmp_path / "engine", checkpoint, wanted(LINKED))
    at = checkpoint.stored("norm")
    with checkpoint.path.open("r+b") as file:
        file.seek(at.offset)
        file.write(b"\x01\x02")
    with pytest.raises(EngineMismatch, match=r"weight norm.None 0 is a part of .*, which was changed"):
        EngineReader(tmp_path / "engine")


def test_a_file_that_ends_early_is_named(tmp_path):
    (tmp_path / "short").write_bytes(b"12345")
    memory = torch.empty(8, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(CheckpointError, match="8 bytes wanted at 0, but the file ends at 5"):
        transfer.transfer([Copy(Extent(tmp_path / "short", 0, 8), 0)], memory)


def test_threads_that_read_are_let_in_soon_and_only_meanwhile(tmp_path, monkeypatch):
    """By whoever computes in Python: the interpreter is asked for it more often, as it was told before."""
    (tmp_path / "file").write_bytes(b"12345678")
    memory, before, seen = torch.empty(8, dtype=torch.uint8), sys.getswitchinterval(), list[float]()
    send = transfer._to_host
    monkeypatch.setattr(transfer, "_to_host", lambda *x: (seen.append(sys.getswitchinterval()), send(*x)))
    for asked in (before, transfer.SWITCH / 2):
        sys.setswitchinterval(asked)
        transfer.transfer([Copy(Extent(tmp_path / "file", 0, 8), 0)], memory)
        assert sys.getswitchinterval() == pytest.approx(asked)
    sys.setswitchinterval(before)
    assert seen == pytest.approx([transfer.SWITCH, transfer.SWITCH / 2])


def test_rows_are_cut_from_pieces_as_from_the_whole(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(40)))
    pieces = [Extent(tmp_path / "f", 30, 5), Extent(tmp_path / "f", 0, 7)]
    whole = [*range(30, 35), *range(7)]
    for start in range(12):
        for stop in range(start, 13):
            found = [i for e in cut(pieces, start, stop) for i in range(e.start, e.start + e.nbytes)]
            assert found == whole[start:stop]


def test_an_element_of_another_width_has_no_bytes_in_the_file(checkpoint):
    (norm,) = wanted({"norm": LINKED["norm"]})
    assert extents(norm.expr, BF16, checkpoint)
    assert extents(norm.expr, F32, checkpoint) is None


def test_a_weight_of_other_dims_is_refused(checkpoint):
    (norm,) = wanted({"norm": LINKED["norm"]})
    wrong = Wanted("norm", norm.expr, None, Type(F32, (33,)))
    with pytest.raises(Exception, match=r"weight `norm` is \[32\], but its type is f32\[33\]"):
        wrong.value(checkpoint)


def test_experts_that_a_file_has_one_by_one_are_read_from_it(tmp_path):
    """The library stacks them; bytes lie as they do in the file all the same."""
    draw = torch.Generator().manual_seed(0)
    names = [f"{e}.{part}" for e in range(3) for part in ("gate", "up")]
    file = {n: torch.randn(4, 8, generator=draw).bfloat16() for n in names}
    save_file(file, tmp_path / "model.safetensors")
    raw = SafetensorsCheckpoint(tmp_path)
    each = [Concat((Tensor(f"{e}.gate"), Tensor(f"{e}.up")), 0) for e in range(3)]
    stacked = Concat(tuple(Reshape(x, (1, 8, 8)) for x in each), 0)
    experts = MappedCheckpoint(raw, {"experts": Expressed(stacked)}, {"experts": (3, 8, 8)})
    found = extents(Tensor("experts"), BF16, experts)
    assert found is not None
    data = b"".join(e.path.read_bytes()[e.start : e.start + e.nbytes] for e in found)
    read = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(3, 8, 8)
    assert torch.equal(read, experts.read("experts"))
    assert extents(Tensor("experts"), F32, experts) is None


@pytest.mark.parametrize(
    "scheme", ["i4g32 = quant(i4, group=32, scale=bf16)", "u4row = quant(u4, group=0, scale=f16, zero=u4)"]
)
def test_fragments_hold_what_rows_do(tmp_path, checkpoint, scheme):
    name = scheme.split()[0]
    expr = 'concat(weight("l.0.q"), weight("l.1.q"), weight("l.2.q"), dim=1)'
    f = parse(
        f"{scheme}\n\ndef layer(x: f32[T], w: {name}[32, 96] = quantize({expr}, {name})):\n    return x\n"
    )
    (p,) = f.funcs["layer"].weights
    dims, quant = (32, 96), p.type.elem
    assert p.weight is not None and isinstance(quant, Quant)
    rows = Wanted("rows", p.weight, None, p.type)
    strips = Wanted("strips", p.weight, None, p.type, span_of(quant, dims))
    got = weight_store.read(
        built(tmp_path / "engine", checkpoint, [rows, strips]), [rows, strips], DEVICE
    ).wait()
    a, b = got["rows"], got["strips"]
    assert isinstance(a, Quantized) and isinstance(b, Quantized) and b.form == FORM
    assert torch.equal(plain(b.values, b.scales, b.zeros, quant).dequantize()[:, :96], a.dequantized())
