"""Pickles of checkpoints, read without importing or calling anything that they name.

torch's checkpoints describe their tensors in pickles, and a pickle is a program that may call any function.
Here a pickle calls only what this file offers: containers and descriptions of tensors. Classes of training
code become inert records of their fields. What a pickle has no reason to name (``os.system``, ``eval``) is
an error.
"""

from __future__ import annotations

import io
import math
import pickle  # noqa: TID251 (its machine is used, with every name it may call decided below)
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

LIMIT = 256 << 20
"""Bytes of a pickle: that of a model of a thousand layers on a thousand ranks is not past it."""

_DTYPES = {
    "float64": "f64", "double": "f64", "float32": "f32", "float": "f32", "float16": "f16", "half": "f16",
    "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2", "int64": "i64", "long": "i64",
    "int32": "i32", "int": "i32", "int16": "i16", "short": "i16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "f64", "FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16",
    "Float8_e4m3fnStorage": "f8e4m3", "Float8_e5m2Storage": "f8e5m2", "LongStorage": "i64",
    "IntStorage": "i32", "ShortStorage": "i16", "CharStorage": "i8", "ByteStorage": "u8",
    "BoolStorage": "bool",
}  # fmt: skip
_QUIET = {
    "argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools", "numbers",
    "pathlib", "re", "signal", "types", "typing", "uuid",
}  # fmt: skip
"""Modules of Python whose classes stand in the arguments of training runs."""


class Inert:
    """An object of a class that is not imported: what the pickle says of it, and nothing that acts."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = object.__new__(cls)
        made.args, made.said, made.state = args, {}, None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.said: dict[str, Any]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state
        for fields in state if isinstance(state, tuple) else (state,):
            if isinstance(fields, dict):
                self.said.update({k: v for k, v in dict.items(fields) if isinstance(k, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        """An item of a container that is of no use here."""

    def append(self, item: Any) -> None:
        """Likewise."""

    def extend(self, items: Any) -> None:
        """Likewise."""


class Unreadable:
    """A tensor that is not read, and why; an error only where it is wanted."""

    def __init__(self, why: str) -> None:
        self.why = why


def load_pickle(data: bytes, path: Path, storage: Callable[[str], tuple[int, int]] | None = None) -> Any:
    """The objects of a pickle in ``path``; tensors are ``Stored``, objects of other classes ``Inert``.

    ``storage`` gives the offset in ``path`` and the bytes of a tensor's storage by its key.
    """
    try:
        return _Unpickler(data, path, storage).load()
    except CheckpointError:
        raise
    except Exception as error:
        what = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{path}: a pickle in it is damaged: {type(error).__name__}: {what}", hint="fetch the file again"
        ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, storage: Callable[[str], tuple[int, int]] | None) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path, self._storage, self._classes = path, storage, dict[tuple[str, str], type[Inert]]()

    def find_class(self, module: str, name: str) -> Any:
        """What ``module.name`` stands for; never the thing itself where that could act."""
        offered = _OFFERED.get(f"{_RENAMED.get(module, module)}.{name}")
        if offered is not None:
            return offered
        if module == "torch" and name in _DTYPES:
            return ELEMS[_DTYPES[name]]
        root = _RENAMED.get(module, module).partition(".")[0]
        if root in {*sys.builtin_module_names, *sys.stdlib_module_names} - _QUIET:
            raise CheckpointError(
                f"{self._path}: a pickle in it wants to call `{module}.{name}`",
                hint="nothing was run; do not trust this file",
            )
        if (module, name) not in self._classes:
            self._classes[module, name] = type("Inert", (Inert,), {"kind": f"{module}.{name}"})
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise CheckpointError(
                f"{self._path}: a pickle refers to data outside of it", hint="fetch it again"
            )
        _, kind, key, _, _ = pid
        name = kind.kind.rpartition(".")[2] if isinstance(kind, type) and issubclass(kind, Inert) else ""
        offset, nbytes = self._storage(str(key))
        return _Storage(self._path, offset, nbytes, ELEMS.get(_STORAGES.get(name, "")))


@dataclass(frozen=True)
class _Storage:
    """Bytes that tensors lie in, and their element where the storage's class says it."""

    path: Path
    offset: int
    nbytes: int
    elem: Elem | None


def _tensor(storage: _Storage, first: Any, size: Any, stride: Any, *rest: Any) -> Stored | Unreadable:
    """A tensor of a storage. Elements without a storage class of their own are named in ``rest``."""
    elem = storage.elem or next((r for r in rest if isinstance(r, Elem)), None)
    if elem is None:
        return Unreadable("its elements are of a kind that is not read")
    dims, nbytes = tuple(size), storage.nbytes
    if not all(type(n) is int and n >= 0 for n in (first, *dims, *stride)):
        return Unreadable("its size is not a tuple of lengths")
    if (first + math.prod(dims)) * elem.bits // 8 > nbytes:
        return Unreadable(f"{elem}{list(dims)} does not fit its {nbytes} bytes")
    packed, expected = 1, []
    for n in reversed(dims):
        expected.append(packed)
        packed *= n
    if any(n > 1 and s != e for n, s, e in zip(dims, stride, reversed(expected), strict=True)):
        return Unreadable("it is stored with strides")
    return Stored(storage.path, storage.offset + first * elem.bits // 8, dims, elem)


def _encode(text: str, codec: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    return text.encode("latin1")


def _instance(cls: Any, *rest: Any) -> Any:
    """How protocols 0 and 1 make an object."""
    return cls() if isinstance(cls, type) and issubclass(cls, Inert) else Inert()


def _bytes(values: Any = ()) -> bytes:
    """Bytes of a list; a number would be a wish for that much memory."""
    return bytes(values) if isinstance(values, list | tuple) else b""


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "cPickle": "pickle", "commands": "subprocess"}
"""What modules were called when protocol 2, which torch writes, was new."""

_OFFERED: dict[str, Any] = {
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "copyreg._reconstructor": _instance,
    "_codecs.encode": _encode,
    "_io.BytesIO": io.BytesIO,
    "io.BytesIO": io.BytesIO,
    "builtins.bytes": _bytes,
    **{f"builtins.{t.__name__}": t for t in (set, frozenset, list, dict, tuple, int, float, str, bool)},
    **{f"builtins.{name}": Inert for name in ("complex", "object", "slice")},
}
"""What a pickle gets for the names that it has reason to call."""
