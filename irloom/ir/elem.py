"""Elements: what one entry of a tensor is, and how many bytes it takes.

A plain element (``f32``, ``i4``) is a format. A quantized element names a scheme that the module header
declares once (``i4g128 = quant(i4, group=128, scale=bf16)``): shapes of the scales, bytes and the reference
dequantization all follow from that one description. Two elements are caches: ``paged[bf16, 16]`` holds keys
and values of every token, in pages; ``state[f32, 256]`` holds one state per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dims import Dim, divide, product
from .errors import IRError

if TYPE_CHECKING:
    import torch

_TORCH = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float8_e4m3fn",  # has every value of it; torch packs two a byte and computes nothing with them
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "i4": "int8",  # torch has no four-bit tensor: one entry per byte in the reference, two in an engine
    "u8": "uint8",
    "u4": "uint8",
    "bool": "bool",
}


@dataclass(frozen=True, repr=False)
class Elem:
    """A plain element: ``kind`` is ``float``, ``int``, ``uint`` or ``bool``."""

    name: str
    bits: int
    kind: str

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype that holds it in the reference."""
        import torch

        return getattr(torch, _TORCH[self.name])

    def nbytes(self, dims: tuple[Dim, ...]) -> Dim:
        """Bytes of a tensor of ``dims``, packed."""
        bits = product(dims) * self.bits
        return divide(bits + (-bits % 8), 8) if isinstance(bits, int) else divide(bits, 8)

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


def _plain(kind: str, *rows: tuple[str, int]) -> dict[str, Elem]:
    return {name: Elem(name, bits, kind) for name, bits in rows}


ELEMS: dict[str, Elem] = {
    **_plain("float", ("f64", 64), ("f32", 32), ("f16", 16), ("bf16", 16), ("f8e4m3", 8), ("f8e5m2", 8)),
    **_plain("float", ("f8e8m0", 8), ("f4e2m1", 4)),
    **_plain("int", ("i64", 64), ("i32", 32), ("i16", 16), ("i8", 8), ("i4", 4)),
    **_plain("uint", ("u8", 8), ("u4", 4)),
    **_plain("bool", ("bool", 8)),
}

STORED = ("f8e8m0", "f4e2m1")  # scales of blocks and entries of blocks: nothing is computed in them


def floating(name: str) -> Elem:
    """The element of weights and activations that is called ``name``; ``IRError`` where there is none.

    >>> str(floating("bf16"))
    'bf16'
    """
    floats = {known: e for known, e in ELEMS.items() if e.kind == "float" and known not in STORED}
    if name not in floats:
        raise IRError(
            f"{name!r} is no element of weights and activations", hint=f"one of {', '.join(floats)}"
        )
    return floats[name]


@dataclass(frozen=True, repr=False)
class Quant:
    """A quantized element: ``rows`` by ``group`` entries, of the last two dims, share one scale.

    ``value = (base - zero) * scale``, where an absent zero is 0. A group of 0 is the whole last dim, ``rows``
    of 0 are all rows of a matrix: a scale per row has ``group=0``, one per tensor ``group=0, rows=0``, one
    per block ``group=128, rows=128``. A group divides its dim; the last block of rows may have fewer.

    >>> i4g32 = Quant("i4g32", ELEMS["i4"], 32, ELEMS["f16"])
    >>> i4g32.scale_dims((1024, 640)), i4g32.nbytes((1024, 640))
    ((1024, 20), 368640)
    >>> Quant("f8b128", ELEMS["f8e4m3"], 128, ELEMS["f32"], rows=128).scale_dims((576, 7168))
    (5, 56)
    """

    name: str
    base: Elem
    group: int
    scale: Elem
    zero: Elem | None = None
    rows: int = 1

    def scale_dims(self, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """Dims of the scales (and zeros) of a tensor of ``dims``; a vector is a row."""
        return (*dims[:-2], *(self._blocks(dims, n) for n in dims[-2:-1]), self._groups(dims))

    def _groups(self, dims: tuple[Dim, ...]) -> Dim:
        last = dims[-1]
        if not self.group:
            return 1
        if not isinstance(last, int) or last % self.group:
            raise IRError(
                f"{self.name}: group {self.group} does not divide the last dim of [{_list(dims)}]",
                hint="choose a group that divides it, or skip this weight",
            )
        return last // self.group

    def _blocks(self, dims: tuple[Dim, ...], height: Dim) -> Dim:
        if self.rows < 2:
            return height if self.rows else 1
        if not isinstance(height, int):
            raise IRError(
                f"{self.name}: {self.rows} rows share a scale, and [{_list(dims)}] may have any number",
                hint="rows=1, or rows=0 for one scale",
            )
        return -(-height // self.rows)

    def nbytes(self, dims: tuple[Dim, ...]) -> Dim:
        """Bytes of values, scales and zeros together."""
        scales = self.scale_dims(dims)
        total = self.base.nbytes(dims) + self.scale.nbytes(scales)
        return total + self.zero.nbytes(scales) if self.zero else total

    def declaration(self) -> str:
        """The right-hand side of its line in the module header."""
        rows = f", rows={self.rows}" if self.rows != 1 else ""
        zero = f", zero={self.zero}" if self.zero else ""
        return f"quant({self.base}, group={self.group}{rows}, scale={self.scale}{zero})"

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


def _list(dims: tuple[Dim, ...]) -> str:
    return ", ".join(map(str, dims))


@dataclass(frozen=True)
class Paged:
    """The element of a cache of tokens: keys and values of ``page`` tokens a page.

    ``window`` is how many of the last tokens must stay readable; older pages may be given back. Every layer's
    cache with the same window shares one page table. ``values`` is the features of a value per head where
    they are not those of a key; 0 keeps keys only, such as the latents of multi-head latent attention. Of
    every ``stride`` tokens only the last is kept, which stands for all of them; a page then has ``page /
    stride`` entries.
    """

    elem: Elem
    page: int
    window: int | None = None
    values: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.page % self.stride:
            raise IRError(
                f"a page of {self.page} tokens has no whole number of strides of {self.stride}",
                hint="a page is a multiple of the stride",
            )

    @property
    def entries(self) -> int:
        """Keys that a page holds."""
        return self.page // self.stride

    @property
    def pool(self) -> str:
        """The pool whose pages it lives in: ``full``, ``window 512`` or ``stride 4``."""
        if self.stride > 1:
            return f"stride {self.stride}"
        return "full" if self.window is None else f"window {self.window}"

    def nbytes(self, dims: tuple[Dim, ...]) -> Dim:
        """Bytes of keys and values for dims ``(pages, kv heads, head dim)``."""
        values = dims if self.values is None else (*dims[:-1], self.values)
        return (self.elem.nbytes(dims) + self.elem.nbytes(values)) * self.entries

    def __str__(self) -> str:
        options = [f"values={self.values}"] * (self.values is not None)
        options += [f"stride={self.stride}"] * (self.stride > 1)
        tail = f"({', '.join(options)})" if options else ""
        return f"paged[{self.elem}, {self.page}{f', {self.window}' if self.window else ''}]{tail}"


@dataclass(frozen=True)
class State:
    """The element of a cache of sequences: what a recurrence has made of all tokens so far.

    Its dims are slots, then the state of one sequence. Every ``every`` tokens a sequence moves on to another
    slot and leaves a snapshot in the one before, from which others with the same prefix can go on.
    """

    elem: Elem
    every: int

    @property
    def pool(self) -> str:
        """All states of a model share one pool."""
        return "state"

    def nbytes(self, dims: tuple[Dim, ...]) -> Dim:
        """Bytes of the states for dims ``(slots, ...)``."""
        return self.elem.nbytes(dims)

    def __str__(self) -> str:
        return f"state[{self.elem}, {self.every}]"


@dataclass(frozen=True)
class Opaque:
    """A value with no entries: ``seqs`` (how tokens belong to sequences), ``caches`` (one a layer)."""

    name: str

    def nbytes(self, dims: tuple[Dim, ...]) -> Dim:
        """Opaque values are not counted."""
        return 0

    def __str__(self) -> str:
        return self.name


SEQS, CACHES = Opaque("seqs"), Opaque("caches")
Cached = Paged | State
AnyElem = Elem | Quant | Cached | Opaque


def elem_of(dtype: torch.dtype) -> Elem:
    """The plain element of a torch dtype; ``IRError`` when there is none."""
    name = str(dtype).removeprefix("torch.")
    for elem, torch_name in _TORCH.items():
        if torch_name == name:
            return ELEMS[elem]
    raise IRError(f"no element for {dtype}", hint=f"known: {', '.join(ELEMS)}")
