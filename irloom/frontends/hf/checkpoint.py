"""A Hugging Face directory: config.json, safetensors weights and tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irloom.frontends.facts import read_json
from irloom.frontends.hf.config_fields import check_fields, readable, stored_dtype
from irloom.frontends.hf.conversion import library_recipes
from irloom.frontends.hf.fit import fit
from irloom.frontends.hf.quantized import dequantized
from irloom.frontends.hf.recipes import MappedCheckpoint
from irloom.frontends.hf.text_part import text_recipes
from irloom.ir.checkpoint import Checkpoint, SafetensorsCheckpoint
from irloom.ir.errors import CheckpointError, IrloomError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tokenizer.tiktoken",
    "tiktoken.model",
)


def read_config(path: Path, trust: bool = False) -> Any:
    """The library's config object of a directory; of code in it, where the user trusts that.

    Raises ``CheckpointError`` where there is none, ``TraceError`` where it takes code that is not trusted.
    """
    from transformers import AutoConfig

    from irloom.frontends.hf.remote import load_config, remote_code

    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: no config.json", hint="a model is a Hugging Face directory, a .gguf file or a hub id"
        )
    check_fields(path / "config.json")
    code = remote_code(path)
    try:
        if code is not None:
            return load_config(code, trust)
        with readable(path) as folder:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.name_or_path = str(path)
        if folder != path:
            config.dtype = stored_dtype(open_raw(path))
    except IrloomError:
        raise
    except Exception as error:  # a config class may raise anything for a value that it does not take
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path / 'config.json'}: {why[:300]}", hint=_remedy(path / "config.json")
        ) from None
    return config


def _remedy(file: Path) -> str:
    """What may help where the library makes no config of ``file``: a newer library, or other fields."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = read_json(file).get("model_type")
    if kind is None:
        return "`model_type` is missing, which names the architecture"
    if kind not in CONFIG_MAPPING:
        return f"transformers {__version__} does not know `{kind}`; pip install -U transformers may help"
    return f"compare it with the config.json of another `{kind}`"


def open_checkpoint(path: Path, model: Any, config: Any = None, *, whole: bool = True) -> MappedCheckpoint:
    """The weights of ``model``, a library model with parameters on the meta device, in directory ``path``.

    Every name, dim and length is checked now; ``CheckpointError`` says what does not fit. ``config`` is the
    directory's, where that has more parts than ``model``. ``whole`` says that the checkpoint is of this very
    model: then a tensor without a place in it is an error too.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    raw = open_raw(path)
    if (stored := _stored_quantized(model.config) or _stored_quantized(config)) is not None:
        raw = dequantized(raw, stored)
    recipes = library_recipes(raw, model, get_model_conversion_mapping(model))
    others: list[str] = []
    if config is not None and (part := text_recipes(raw, config, model)):
        recipes, others = {**recipes, **part[0]}, part[1]
    return fit(raw, recipes, model, unused=others if whole else None)


def _stored_quantized(config: Any) -> dict[str, Any] | None:
    fields = getattr(config, "quantization_config", None)
    return fields or None if fields is None or isinstance(fields, dict) else fields.to_dict()


def open_raw(path: Path) -> Checkpoint:
    """The tensors of a directory under the file's own names; pickled ones only where there are no others."""
    from irloom.frontends.hf.pickled import PickledCheckpoint, holds_pickle

    plain = any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").is_file()
    return PickledCheckpoint(path) if not plain and holds_pickle(path) else SafetensorsCheckpoint(path)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a directory; ``CheckpointError`` where there is none."""
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{path}: no tokenizer (none of {', '.join(_TOKENIZER_FILES[:3])}, ...)",
            hint="copy the tokenizer's files beside config.json, or give prompts as token ids",
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare ones
        raise CheckpointError(
            f"{path}: its tokenizer does not load: {error}".splitlines()[0],
            hint="fetch its files again, or give prompts as token ids",
        ) from None
