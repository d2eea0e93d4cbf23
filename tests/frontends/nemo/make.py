"""Write tiny checkpoints: ``python -m tests.frontends.nemo.make OUT family:format ...``.

For each family ``OUT/family/reference.safetensors`` with tokens and Megatron's logits, and the formats.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(out: Path, wanted: list[str]) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.frontends.nemo.megatron import FAMILIES, build, on_cpu, reference
    from tests.frontends.nemo.writers import FORMATS, Source

    on_cpu()
    families: dict[str, list[str]] = {}
    for item in wanted:
        family, _, kind = item.partition(":")
        families.setdefault(family, []).append(kind)
    for family, formats in families.items():
        model, config, given = build(family)
        ids, logits = reference(model)
        folder = out / family
        folder.mkdir(parents=True)
        save_file({"ids": ids, "logits": logits}, folder / "reference.safetensors")
        if FAMILIES[family].zero_centered:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "norm" in name and name.endswith("weight"):
                        parameter.sub_(1)
        for kind in formats:
            FORMATS[kind](Source(family, model, config, given), folder / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
