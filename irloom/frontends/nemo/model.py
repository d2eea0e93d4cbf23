"""A model as its tensors and its config say it is: tensors first, because flags are often missing."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from irloom.frontends.nemo.laid import Laid
from irloom.frontends.nemo.settings import Settings
from irloom.ir.elem import Elem
from irloom.ir.errors import CheckpointError

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Model:
    """Tensors by their canonical names, and what the config adds to them."""

    path: Path
    settings: Settings
    tensors: dict[str, Laid]

    def layer_with(self, suffix: str) -> int | None:
        """The first layer that has a tensor of this name."""
        return next((i for i in range(self.layers) if f"decoder.layers.{i}.{suffix}" in self.tensors), None)

    def layers_with(self, suffix: str) -> list[int]:
        """The layers that have a tensor of this name."""
        return [i for i in range(self.layers) if f"decoder.layers.{i}.{suffix}" in self.tensors]

    def has(self, suffix: str) -> bool:
        """Whether any layer has a tensor of this name."""
        return self.layer_with(suffix) is not None

    def dims(self, suffix: str) -> tuple[int, ...]:
        """Dims of a tensor in the first layer that has it."""
        layer = self.layer_with(suffix)
        if layer is None:
            raise CheckpointError(
                f"{self.path}: no layer has `{suffix}`", hint="the checkpoint is incomplete"
            )
        return self.tensors[f"decoder.layers.{layer}.{suffix}"].dims

    @functools.cached_property
    def layers(self) -> int:
        return 1 + max(int(m[1]) for name in self.tensors if (m := _LAYER.match(name)))

    @functools.cached_property
    def embedding(self) -> Laid:
        found = self.tensors.get("embedding.word_embeddings.weight")
        if found is None or len(found.dims) != 2:
            raise CheckpointError(f"{self.path}: no embedding of words", hint="the checkpoint is incomplete")
        return found

    @property
    def hidden(self) -> int:
        return self.embedding.dims[1]

    @property
    def elem(self) -> Elem:
        return self.embedding.elem

    @property
    def vocab(self) -> int:
        """Words: Megatron pads the embedding's rows to a round number; the config may know the true one."""
        rows, said = self.embedding.dims[0], self.settings.vocab
        return said if said and said < rows else rows

    @property
    def tied(self) -> bool:
        return "output_layer.weight" not in self.tensors

    @property
    def gated(self) -> bool:
        """Whether an MLP's first product gives gates and values: it then has twice the rows that the second
        has columns.
        """
        up, down = (self._mlp(f"linear_fc{i}.weight") for i in (1, 2))
        if up[0] not in (down[1], 2 * down[1]):
            raise CheckpointError(
                f"{self.path}: an MLP of {list(up)} and {list(down)} is not understood",
                hint="is the checkpoint whole?",
            )
        return up[0] == 2 * down[1]

    @property
    def intermediate(self) -> int | None:
        """Width of the dense MLPs; None where all layers choose experts."""
        return self.dims("mlp.linear_fc2.weight")[1] if self.has("mlp.linear_fc2.weight") else None

    @property
    def experts(self) -> int:
        return self.dims("mlp.router.weight")[0] if self.has("mlp.router.weight") else 0

    @property
    def expert_width(self) -> int:
        return self.dims("mlp.experts.0.linear_fc2.weight")[1]

    @property
    def shared_width(self) -> int:
        """Width of the experts that every token takes; 0 where there are none."""
        name = "mlp.shared_experts.linear_fc2.weight"
        return self.dims(name)[1] if self.has(name) else 0

    @functools.cached_property
    def head_dim(self) -> int:
        """As the rows of queries, keys and values make it, which must be as the config says."""
        said, parts = self.settings, self.settings.heads + 2 * self.settings.groups
        rows = self.dims("self_attention.linear_qkv.weight")[0]
        if said.heads % said.groups or rows % parts or (said.head_dim and rows != parts * said.head_dim):
            raise CheckpointError(
                f"{self.path}: {rows} rows of queries, keys and values are not those of {said.heads} heads in"
                f" {said.groups} groups" + (f" of {said.head_dim}" if said.head_dim else ""),
                hint="the config is that of another model",
            )
        return rows // parts

    def describe(self) -> str:
        """What sets the model apart, for an error."""
        said = self.settings
        facts = {
            "RMSNorm" if said.rms else "LayerNorm": True,
            f"{said.activation}{' gated' if self.gated else ''}": True,
            f"{said.position} positions": True,
            "norms on queries and keys": self.has("self_attention.q_layernorm.weight"),
            "bias on queries, keys and values": self.has("self_attention.linear_qkv.bias"),
            "bias on products": self.has("self_attention.linear_proj.bias"),
            f"{self.experts} experts": bool(self.experts),
            "shared experts": bool(self.shared_width),
            "latent attention": said.latent is not None,
            "Mamba layers": self.has("mixer.A_log"),
        }
        return ", ".join(name for name, yes in facts.items() if yes)

    def _mlp(self, name: str) -> tuple[int, ...]:
        for place in ("mlp", "mlp.experts.0"):
            if self.has(f"{place}.{name}"):
                return self.dims(f"{place}.{name}")
        raise CheckpointError(f"{self.path}: no layer has an MLP", hint="the checkpoint is incomplete")
