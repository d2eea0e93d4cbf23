"""Greedy answers of irloom beside those of transformers eager, f32 on one GGUF: are they the same tokens?

    python benchmarks/greedy.py                # 32 prompts of mixed length sent together, 64 tokens each

The prompts are pieces of this project's license, of 1 to 300 tokens. Where two answers part, the difference
of the two best scores at that token is printed: a tie within rounding is told from a mistake.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import irloom

ROOT = Path(__file__).resolve().parent.parent


def prompts(llm: irloom.LLM, count: int) -> list[list[int]]:
    """Pieces of the license, the beginning-of-text token first."""
    text = llm.tokenizer.encode((ROOT / "LICENSE").read_text()).ids
    draw = random.Random(0)
    lengths = [1, 2, 3, *(draw.randint(4, 300) for _ in range(count - 3))]
    starts = [draw.randrange(1, len(text) - n) for n in lengths]
    return [[text[0], *text[at : at + n]] for at, n in zip(starts, lengths, strict=True)]


def reference(model: torch.nn.Module, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The library's greedy answer, and by how much each token was ahead of the next best."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
    out = model.generate(ids, output_scores=True, return_dict_in_generate=True, **settings)
    ahead = [float(s[0].topk(2).values.diff().abs()) for s in out.scores]
    return out.sequences[0, len(prompt) :].tolist(), ahead


def main() -> None:
    """Print one line per prompt that differs, and the count of those that do not."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--gguf", type=Path, default=ROOT / ".demo" / "gemma-3-270m-q4_k_m.gguf")
    args.add_argument("--prompts", type=int, default=32)
    args.add_argument("--tokens", type=int, default=64)
    given = args.parse_args()
    llm = irloom.LLM(given.gguf, max_context=1024)
    asked = prompts(llm, given.prompts)
    params = irloom.SamplingParams(temperature=0.0, max_tokens=given.tokens, ignore_eos=True)
    start = time.perf_counter()
    told = llm.generate([{"prompt_token_ids": p} for p in asked], params)
    print(f"irloom: {given.prompts} prompts together in {time.perf_counter() - start:.1f} s")
    where = given.gguf.resolve()
    model = AutoModelForCausalLM.from_pretrained(
        where.parent, gguf_file=where.name, dtype=torch.float32
    ).eval()
    same = 0
    for prompt, answer in zip(asked, told, strict=True):
        wanted, ahead = reference(model, prompt, given.tokens)
        if answer.token_ids == wanted:
            same += 1
            continue
        at = next(i for i, (a, b) in enumerate(zip(answer.token_ids, wanted, strict=True)) if a != b)
        print(f"prompt of {len(prompt)} tokens: token {at} differs; the best was ahead by {ahead[at]:.2e}")
    print(f"{same} of {given.prompts} answers of {given.tokens} tokens are the same")


if __name__ == "__main__":
    main()
