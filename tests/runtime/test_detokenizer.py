"""Streaming text: the pieces add up to the whole, show no half characters, end before a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from irloom.ir.errors import IrloomError
from irloom.runtime.detokenizer import UNFINISHED, Detokenizer, StopStrings, Vocabulary

TEXTS = [
    "The quick brown fox, it's 3.14!\n\tdef f(x): return x",
    "naïve café Ωμέγα Привет",
    "你好，世界。こんにちは 안녕하세요",
    "👨‍👩‍👧‍👦 family 🇫🇷 👍🏽 é e\u0301",
    "שלום עולם مرحبا بالعالم",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u0000\u200d \ufffd",
]


def byte_level() -> Tokenizer:
    """GPT-2's kind: pieces of bytes, so a token may end inside a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def byte_fallback(strip: bool) -> Tokenizer:
    """SentencePiece's kind: bytes for the characters it lacks; Llama 2 strips the first space."""
    letters = "▁abcdefghijklmnopqrstuvwxyz.,!'你é"
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *letters,
        "▁the",
        "he",
        "th",
        "the",
    ]
    merges = [("t", "h"), ("h", "e"), ("th", "e"), ("▁", "the")]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    "fallback": byte_fallback(False),
    "fallback, strip": byte_fallback(True),
}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def whole(
    tokenizer: Tokenizer, vocabulary: Vocabulary, prompt: list[int], output: list[int], skip: bool
) -> str:
    """What decoding all at once adds to the finished characters of the prompt."""
    done = list(prompt)
    while done and (done[-1] in vocabulary.bytes or not vocabulary.shown(done[-1], skip)):
        done.pop()
    before = tokenizer.decode(done if vocabulary.bytes else prompt, skip_special_tokens=skip)
    before = before if vocabulary.bytes else before.removesuffix(UNFINISHED)
    return tokenizer.decode(prompt + output, skip_special_tokens=skip)[len(before) :]


def pieces(vocabulary: Vocabulary, prompt: list[int], output: list[int], skip: bool = True) -> list[str]:
    stream = Detokenizer(vocabulary, prompt, skip)
    return [*(stream.push(token) for token in output), stream.flush()]


@every_tokenizer
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=300)
def test_random_tokens_add_up(kind, data, skip):
    """Any ids at all: broken characters, special and added tokens, also as the prompt."""
    tokenizer = TOKENIZERS[kind]
    vocabulary = Vocabulary(tokenizer)
    ids = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40)
    prompt, output = data.draw(ids), data.draw(ids)
    assert "".join(pieces(vocabulary, prompt, output, skip)) == whole(
        tokenizer, vocabulary, prompt, output, skip
    )


@every_tokenizer
@given(text=st.one_of(st.text(max_size=60), st.sampled_from(TEXTS)), data=st.data())
@settings(max_examples=300)
def test_real_text_never_shows_half_a_character(kind, text, data):
    """Cut anywhere into prompt and output, the pieces are those of the text."""
    tokenizer = TOKENIZERS[kind]
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    cut = data.draw(st.integers(0, len(ids)))
    got = pieces(vocabulary, ids[:cut], ids[cut:])
    assert "".join(got) == whole(tokenizer, vocabulary, ids[:cut], ids[cut:], True)
    assert UNFINISHED in text or not any(UNFINISHED in piece for piece in got)


@given(text=st.text(st.characters(exclude_characters=UNFINISHED, exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=100)
def test_byte_level_text_comes_as_soon_as_it_can(text):
    """What is out is the longest beginning that is certain: no more than three bytes lag behind."""
    tokenizer = TOKENIZERS["byte level"]
    vocabulary = Vocabulary(tokenizer)
    stream, out = Detokenizer(vocabulary, []), ""
    ids = tokenizer.encode(text).ids
    for n, token in enumerate(ids):
        out += stream.push(token)
        assert out == tokenizer.decode(ids[: n + 1]).removesuffix(UNFINISHED)


def test_windows_stay_short():
    """Neither long text nor nothing but broken characters makes a step dearer."""
    vocabulary = Vocabulary(TOKENIZERS["byte level"])
    broken = vocabulary.tokenizer.token_to_id("ł")  # the byte 0x82: never starts a character
    assert broken is not None
    for ids in ([broken] * 500, TOKENIZERS["byte level"].encode(TEXTS[2] * 20).ids):
        stream = Detokenizer(vocabulary, ids[:100])
        assert all(len(stream.window) < 50 for token in ids if stream.push(token) is not None)


@every_tokenizer
def test_ids_outside_the_vocabulary_have_no_text(kind):
    vocabulary = Vocabulary(TOKENIZERS[kind])
    assert "".join(pieces(vocabulary, [-5, 10**6], [10**6, -1, 2**31 - 1])) == ""


def test_a_transformers_tokenizer_lends_its_backend():
    class Fast:
        backend_tokenizer = TOKENIZERS["byte level"]

    assert Vocabulary(Fast()).encode("fox") == TOKENIZERS["byte level"].encode("fox").ids
    with pytest.raises(IrloomError, match="str has no backend of the tokenizers library"):
        Vocabulary("gpt2")


def cut_at_stop(chunks: list[str], stops: list[str], include: bool, armed: int) -> tuple[str, str | None]:
    """Character by character: the first moment at which the text ends with a stop string."""
    text, gate = "", len("".join(chunks[:armed]))
    for n, character in enumerate("".join(chunks), 1):
        text += character
        found = [stop for stop in stops if text.endswith(stop)]
        if n > gate and found:
            stop = max(found, key=len)
            return (text if include else text[: -len(stop)]), stop
    return text, None


@given(
    chunks=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    include=st.booleans(),
    armed=st.integers(0, 12),
)
@settings(max_examples=500)
def test_stop_strings(chunks, stops, include, armed):
    """However the text is cut into pieces, it ends where it would end character by character."""
    matcher, out = StopStrings(stops, include), ""
    text, stop = cut_at_stop(chunks, stops, include, armed)
    for n, chunk in enumerate(chunks):
        out += matcher.push(chunk, armed=n >= armed)
        assert text.startswith(out)
        if matcher.found:
            break
    assert (out + matcher.flush(), matcher.found) == (text, stop)


def test_only_what_may_be_a_stop_string_is_kept_back():
    matcher = StopStrings(["</end>"])
    assert [matcher.push(c) for c in ("a <", "b", "</", "en", "x", "</end", "> c")] == [
        "a ",
        "<b",
        "",
        "",
        "</enx",
        "",
        "",
    ]
    assert matcher.found == "</end>"
