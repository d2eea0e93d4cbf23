"""An engine's weights: each once, in the engine or where the checkpoint has its bytes; all in one memory.

A weight that launches read as it lies in files is a list of links: a tensor, or rows of several behind each
other, as joined projections are. The others are computed on the device when the engine is built, tensor by
tensor, and written to shards of about a gigabyte, so that several are written, hashed and read at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.beside import beside
from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import file_header, read_header
from irloom.ir.types import Type
from irloom.ir.weight_expr import Const, WeightExpr, show_weight, tensor_name, tensor_names
from irloom.ir.weights import NO_CONSTS, Consts, materialize

from . import fragments
from .extents import Extent, extents
from .quantized import Operand, Quantized
from .transfer import Copy, transfer

SHARD = 1 << 30
"""Bytes of a file of weights."""
FOLDER, LINK = "weights/", "weight "
WRITERS = 4
"""Shards that are computed at a time."""
ALIGN = 256
"""Bytes at whose multiples tensors begin on the device."""
Value = torch.Tensor | QuantizedTensor
Device = torch.device | str


@dataclass(frozen=True)
class Wanted:
    """A weight as launches read it: ``expr`` for a layer, in the element of ``type``, under a name.

    With a ``span`` it lies in ``fragments``.
    """

    name: str
    expr: WeightExpr
    layer: int | None
    type: Type
    span: int = 0

    @property
    def same(self) -> tuple[str, Type, int]:
        """What weights have in common of which one is enough."""
        return tensor_name(show_weight(self.expr), self.layer), self.type, self.span

    @property
    def tensors(self) -> dict[str, tuple[Elem, tuple[int, ...]]]:
        """The tensors that it is stored as, in order: one, or entries, scales and zeros."""
        dims, elem = _ints(self.type.dims), self.type.elem
        if isinstance(elem, Elem):
            return {self.name: (elem, dims)}
        assert isinstance(elem, Quant)
        pairs = elem.base.bits == 4
        values = (ELEMS["u8"], (*dims[:-1], dims[-1] // 2)) if pairs else (elem.base, dims)
        scales = _ints(elem.scale_dims(dims))
        if self.span:
            values, scales = (
                (ELEMS["u8"], fragments.dims_of(dims, self.span)),
                fragments.beside(dims, self.span),
            )
        made = {f"{self.name}:values": values, f"{self.name}:scales": (elem.scale, scales)}
        return made | ({f"{self.name}:zeros": (_whole(elem.zero), scales)} if elem.zero else {})

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(_size(elem, dims) for elem, dims in self.tensors.values())

    def value(self, checkpoint: Checkpoint, consts: Consts = NO_CONSTS, device: Device = "cpu") -> Value:
        """What the checkpoint gives for it; ``IRError`` where that is not of its dims."""
        x = materialize(self.expr, checkpoint, self.layer, consts, device)
        if isinstance(self.type.elem, Elem):
            x = x.dequantize() if isinstance(x, QuantizedTensor) else x
            x = x.to(self.type.elem.torch)
        dims = x.dims if isinstance(x, QuantizedTensor) else tuple(x.shape)
        if dims != self.type.dims:
            raise IRError(f"weight `{self.name}` is {list(dims)}, but its type is {self.type}")
        return x

    def made(self, tensors: Mapping[str, torch.Tensor]) -> Operand:
        """The operand that the stored tensors are."""
        if isinstance(self.type.elem, Elem):
            return tensors[self.name]
        assert isinstance(self.type.elem, Quant)
        values, scales, *zeros = (tensors[name] for name in self.tensors)
        form = fragments.FORM if self.span else "rows"
        return Quantized(values, scales, zeros[0] if zeros else None, self.type.elem, form)

    def parts(self, value: Value) -> list[torch.Tensor]:
        """What is stored of a value: the ``tensors``."""
        if isinstance(value, torch.Tensor):
            return [value]
        if self.span:
            return fragments.arranged(value, self.span)
        return [value.packed(), value.scales, *([] if value.zeros is None else [value.zeros])]


def write(
    out: EngineWriter,
    wanted: Iterable[Wanted],
    checkpoint: Checkpoint,
    report: Report,
    consts: Consts = NO_CONSTS,
    device: Device = "cpu",
) -> None:
    """Link to what lies in files as it is; compute the rest on ``device`` and write it to shards."""
    own: list[Wanted] = []
    for w in _once(wanted).values():
        found = _unchanged(w, checkpoint)
        for i, e in enumerate(found or ()):
            out.link(f"{LINK}{w.name} {i}", e.path, e.start, e.start + e.nbytes)
        own += [w] if found is None else []
    lock, done = threading.Lock(), 0
    made = threading.Lock()
    report("weights", 0, len(own))

    def shard(number: int, weights: Sequence[Wanted]) -> None:
        nonlocal done
        name = f"{FOLDER}{number:04}.safetensors"
        tensors = {k: t for w in weights for k, t in w.tensors.items()}
        with out.file(name).open("wb") as file:
            header = file_header(tensors)
            file.write(header)
            out.cut(name, [*accumulate((_size(*t) for t in tensors.values()), initial=len(header))][:-1])
            for w in weights:
                with _alone(w, checkpoint, made):
                    value = w.value(checkpoint, consts, device)
                for x in w.parts(value):
                    file.write(x.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
                with lock:
                    done += 1
                    report("weights", done, len(own))

    with ThreadPoolExecutor(WRITERS) as pool:
        for each in [pool.submit(shard, i, x) for i, x in enumerate(_shards(own))]:
            each.result()


@dataclass(frozen=True)
class Arriving:
    """Weights by name, on their way to the device: views of one memory, in which the rest is zeros."""

    operands: dict[str, Operand]
    ready: Future[None]

    def wait(self) -> dict[str, Operand]:
        """The operands, when all bytes are there and checked; ``CheckpointError`` for a file that ends too
        early, ``EngineMismatch`` for one that was changed.
        """
        self.ready.result()
        return self.operands


def read(engine: EngineReader, wanted: Iterable[Wanted], device: Device) -> Arriving:
    """Begin to read every weight to ``device``, and to check there what of the engine is unchecked."""
    from .checks import check  # which loads Triton

    wanted = list(wanted)
    once, places = _once(wanted), _places(engine)
    at, copies, where = 0, dict[str, list[Copy]](), dict[str, int]()
    for w in once.values():
        for name, (elem, dims) in w.tensors.items():
            where[name], to = at, at
            for part, e in places[name]:
                copies.setdefault(part, []).append(Copy(e, to))
                to += e.nbytes
            assert to == at + _size(elem, dims), f"{name} is stored as {to - at} bytes"
            at += -(-_size(elem, dims) // ALIGN) * ALIGN
    memory = torch.zeros(at, dtype=torch.uint8, device=device)

    def view(name: str, elem: Elem, dims: tuple[int, ...]) -> torch.Tensor:
        start = where[name]
        return memory[start : start + _size(elem, dims)].view(elem.torch).view(dims)

    made = {key: w.made({name: view(name, *t) for name, t in w.tensors.items()}) for key, w in once.items()}
    if memory.is_cuda:
        torch.cuda.current_stream(memory.device).synchronize()  # this thread's: another would not see it
    filled = beside(lambda: transfer([c for of_one in copies.values() for c in of_one], memory))

    def checked() -> None:
        try:
            check(engine, copies, memory, filled)
        finally:
            wait([filled])  # behind an error nobody writes to that memory any more

    return Arriving({w.name: made[w.same] for w in wanted}, beside(checked))


def stands_for(t: Type) -> Operand:
    """A weight of a type with no entries, on the device ``meta``."""
    w = Wanted("", Const(""), None, t)
    parts = w.tensors.items()
    return w.made({name: torch.empty(dims, dtype=e.torch, device="meta") for name, (e, dims) in parts})


def stored_bytes(engine: EngineReader) -> int:
    """Bytes of all weights of an engine."""
    parts, links = engine.manifest.parts, engine.manifest.links
    own = sum(part.bytes for name, part in parts.items() if name.startswith(FOLDER))
    return own + sum(x.stop - x.start for name, x in links.items() if name.startswith(LINK))


def _once(wanted: Iterable[Wanted]) -> dict[tuple[str, Type, int], Wanted]:
    """The first of those that are the same."""
    out: dict[tuple[str, Type, int], Wanted] = {}
    for w in wanted:
        out.setdefault(w.same, w)
    return out


def _unchanged(w: Wanted, checkpoint: Checkpoint) -> list[Extent] | None:
    """Where the bytes lie that launches read; None where they are computed."""
    if not isinstance(w.type.elem, Elem) or not w.nbytes:
        return None
    found = extents(w.expr, w.type.elem, checkpoint, w.layer)
    return found if found and sum(e.nbytes for e in found) == w.nbytes else None


def _alone(w: Wanted, checkpoint: Checkpoint, lock: threading.Lock) -> AbstractContextManager[object]:
    """What a weight is computed under: bytes of files are read side by side, anything else in turn."""
    plain = all(checkpoint.stored(name) for name in tensor_names(w.expr, w.layer))
    return nullcontext() if plain else lock


def _shards(weights: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Weights in their order, about ``SHARD`` bytes together."""
    held, size = list[Wanted](), 0
    for w in weights:
        if held and size + w.nbytes > SHARD:
            yield held
            held, size = [], 0
        held.append(w)
        size += w.nbytes
    if held:
        yield held


def _places(engine: EngineReader) -> dict[str, list[tuple[str, Extent]]]:
    """Where each tensor is: in parts, or links to files outside of the engine."""
    out: dict[str, list[tuple[str, Extent]]] = {}
    for part in engine.manifest.parts:
        if part.startswith(FOLDER):
            for name, at in read_header(engine.file(part)).items():
                out[name] = [(part, Extent(at.path, at.offset, at.nbytes))]
    for name, link in engine.manifest.links.items():
        if name.startswith(LINK):
            key = name.removeprefix(LINK).rpartition(" ")[0]
            e = Extent(Path(link.file), link.start, link.stop - link.start)
            out.setdefault(key, []).append((name, e))
    return out


def _whole(elem: Elem) -> Elem:
    """An element of whole bytes that holds it."""
    return ELEMS[f"{elem.name[0]}8"] if elem.bits == 4 else elem


def _size(elem: Elem, dims: tuple[int, ...]) -> int:
    return torch.Size(dims).numel() * elem.torch.itemsize


def _ints(dims: Iterable[object]) -> tuple[int, ...]:
    return tuple(d for d in dims if isinstance(d, int))
