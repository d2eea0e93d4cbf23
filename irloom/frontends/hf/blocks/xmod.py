"""X-MOD: an adapter per language, of which every token takes that of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces


@replaces("XmodEncoder")
def encoder(self: Any, hidden_states: Tensor, lang_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The model's default language, which all tokens have, as a number that is known."""
    languages = [str(language) for language in self.config.languages]
    language = languages.index(str(self.config.default_language))
    return type(self).forward(self, hidden_states, language, *args, **kwargs)


@replaces("XmodOutput", method="lang_adapter")
def adapter(self: Any, lang_ids: int, hidden_states: Tensor) -> Tensor:
    """``hidden_states`` [B, T, H] through the adapter of one language."""
    normed = hidden_states
    if self.adapter_layer_norm is not None:
        normed = self.adapter_layer_norm(hidden_states)
    elif self.adapter_reuse_layer_norm:
        normed = self.LayerNorm(hidden_states)
    adapted = list(self.adapter_modules.values())[lang_ids](normed)
    return adapted + (normed if self.ln_before_adapter else hidden_states)
