"""Requests with a tokenizer: text as it streams, stop strings, and what min_tokens puts off."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from irloom.ir.plan import Pool
from irloom.runtime.answer import Delta, Output
from irloom.runtime.core import Batch, Sampled
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams

END = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and ``</s>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


class Script:
    """An engine that says what stands in the script, by how many tokens a request has generated."""

    vocab, max_tokens, max_seqs, max_context = 257, 64, 4, 256
    pools = (Pool("full", None, 4, 0, 200),)

    def __init__(self, script: list[int]) -> None:
        self.script = script

    def step(self, batch: Batch) -> list[Sampled | None]:
        return [row and Sampled(self.script[row.position]) for row in batch.sampling]


def loop(text: str) -> Loop:
    tokenizer = byte_tokenizer()
    return Loop(Script([*tokenizer.encode(text).ids, END]), tokenizer, eos=[END])


def last(deltas: list[Delta]) -> Output:
    output = deltas[-1].output
    assert output is not None
    return output


TEXT = "naïve 👨‍👩‍👧 family, 你好. The end"
ALL = SamplingParams(max_tokens=None)


def test_streamed_text_is_the_text():
    deltas = list(loop(TEXT).stream("Say: ", ALL))
    output = last(deltas)
    assert "".join(d.text for d in deltas) == output.text == TEXT
    assert not any("\ufffd" in d.text for d in deltas)
    assert [t for d in deltas for t in d.token_ids] == output.token_ids
    assert (output.token_ids[-1], output.finish_reason, output.stop_reason) == (END, "stop", None)
    assert loop(TEXT).generate(["Say: "], ALL) == [output]


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"stop": ["family"]}, "naïve 👨‍👩‍👧 ", "family"),
        ({"stop": ["family", "fam"], "include_stop": True}, "naïve 👨‍👩‍👧 fam", "fam"),
        ({"stop": ["好."]}, "naïve 👨‍👩‍👧 family, 你", "好."),
        ({"stop": ["The end of"]}, TEXT, None),
        ({"stop": ["naïve", "end"], "min_tokens": 10}, TEXT[: TEXT.index("end")], "end"),
        ({"stop_token_ids": [END]}, TEXT, END),
        ({"stop_token_ids": [END], "include_stop": True, "skip_special_tokens": False}, TEXT + "</s>", END),
    ],
)
def test_stops(params, text, reason):
    deltas = list(loop(TEXT).stream("Say: ", SamplingParams(max_tokens=None, **params)))
    output = last(deltas)
    assert (output.text, output.stop_reason, output.finish_reason) == (text, reason, "stop")
    assert "".join(d.text for d in deltas) == text


def test_a_cut_character_ends_as_decoding_it_would():
    """Three of the four bytes of an emoji were generated: the whole decodes to a replacement character."""
    one = loop("👍")
    deltas = list(one.stream("Say: ", SamplingParams(max_tokens=3)))
    assert [d.text for d in deltas] == ["", "", "\ufffd"]
    assert last(deltas).finish_reason == "length"


def test_text_kept_back_for_a_stop_string_comes_at_the_end():
    deltas = list(loop("a b").stream("x", SamplingParams(max_tokens=3, stop=[" b c"])))
    assert [d.text for d in deltas] == ["a", "", " b"]


def test_cancelled_text_is_kept():
    one = loop(TEXT)
    name = one.add_request("Say: ", ALL)
    told = "".join(d.text for _ in range(4) for d in one.step())
    output = one.cancel(name)
    assert output is not None
    assert (told, output.text, len(output.token_ids)) == ("naï", "naï", 4)
