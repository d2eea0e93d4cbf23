"""Compile a Triton kernel for a GPU, SM 9.0 by default, where there is none: what the interpreter skips."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

PROGRAM = """
import json, sys
import torch
asked = json.loads(sys.argv[1])
torch.cuda.get_device_capability = lambda *_: divmod(asked["capability"], 10)
torch.cuda.is_available = lambda: True
import importlib, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
fn = getattr(importlib.import_module(asked["module"]), asked["kernel"])
types = {n: asked["signature"].get(n, "constexpr") for n in fn.arg_names}
aligned = [i for i, n in enumerate(fn.arg_names) if types[n].startswith("*") or types[n].endswith(":16")]
attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
signature = {n: t.removesuffix(":16") for n, t in types.items()}
constants = asked["constants"]
constants |= {n: getattr(triton.language, x[3:]) for n, x in constants.items() if str(x).startswith("tl.")}
source = (GluonASTSource if fn.is_gluon() else ASTSource)(fn, signature, constants, attrs)
made = triton.compile(source, target=GPUTarget("cuda", asked["capability"], 32), options=asked["options"])
print(json.dumps({n: made.asm.get(n) for n in ("ptx", "ttgir")} | {"shared": made.metadata.shared}))
"""


def copied(element: str, bits: int, *box: int) -> str:
    """The type of a tensor that the copy engine reads a ``box`` of at a time."""
    layout = f"swizzle_byte_width={min(128, box[-1] * bits // 8)}, element_bitwidth={bits}, rank={len(box)}"
    return f"tensordesc<{element}{list(box)},NVMMASharedLayout({layout})>"


def compiled(
    module: str,
    kernel: str,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int = 90,
    **options: Any,
) -> dict[str, Any]:
    """The kernel's PTX, its ``ttgir`` (Triton's code with layouts), and bytes of shared memory.

    ``signature`` has the types of tensors (``*bf16``, or ``copied``) and numbers (``i32``; ``i32:16`` is
    divisible by 16, which a launch sees by itself), ``constants`` the values of all other parameters (an
    element is ``tl.bfloat16``). ``capability`` is the GPU's, times ten.
    """
    asked = {
        "module": module, "kernel": kernel, "signature": dict(signature), "constants": dict(constants),
        "capability": capability, "options": options,
    }  # fmt: skip
    compiles = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        capture_output=True, text=True, check=False, env=compiles,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def spilled(ptx: str) -> int:
    """Bytes that a thread writes to memory because its registers do not hold them."""
    from triton import knobs

    given = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", "-o", os.devnull, "/dev/stdin"]
    done = subprocess.run(given, input=ptx, capture_output=True, text=True, check=True)
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stderr))


def counts(ptx: str) -> list[str]:
    """What each addition to a counter that programs share orders, one after another.

    Who leaves a part of a sum releases it, and who may read parts of others has to acquire them: one that
    counts itself in and comes last does both at once.
    """
    return re.findall(r"atom\.global\.gpu\.(\w+)\.add\.u32", ptx)


def starts_late(code: str) -> bool:
    """Whether a kernel of groups of warps writes nothing, and wakes none, before all in front is there.

    As its ``ttgir`` says, which is in the order that it runs in: blocks of PTX may lie in any.
    """
    early, *late = code.split("griddepcontrol.wait")
    return len(late) == 1 and not any(does in early for does in ("tt.store", "tt.atomic", "warp_specialize"))
