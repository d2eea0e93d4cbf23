"""Tiny models on disk: random weights of a library class, and a byte-level tokenizer made on the spot."""

from pathlib import Path
from typing import Any

VOCAB = 320
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llama_config(**changes: Any) -> Any:
    """Grouped queries, no sliding window."""
    from transformers import LlamaConfig

    return LlamaConfig(**{**COMMON, **changes})


def gemma_config(**changes: Any) -> Any:
    """A window of 8 tokens in three layers of four, norms before and after, tied embeddings."""
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    return Gemma3TextConfig(
        **{**COMMON, "sliding_window": 8, "layer_types": kinds, "tie_word_embeddings": True, **changes}
    )


def save_model(config: Any, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Save a model of ``config`` with weights wide enough that greedy answers vary; the model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, p in model.named_parameters():
            p.data.normal_(0, 0.02 if "norm" in name else 0.15)
            if "norm" in name and "gemma" not in config.model_type:
                p.data.add_(1)
    model.save_pretrained(folder, **options)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def tokenizer() -> Any:
    """Byte-level BPE with ``VOCAB`` entries: two special tokens, the bytes, and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        ["once upon a time there was a little compiler that could read its own programs " * 4], trainer
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made
