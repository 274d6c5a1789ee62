"""Prompts of exact lengths, drawn from a seed; files; conversations."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from serve_app.bench.prompts import (
    Lengths,
    PromptsError,
    conversations,
    from_file,
    random_prompts,
)
from serve_app.bench.tokens import TokenizerError, Words, count, find

TOKENIZER = find(None, "neuron-serve/demo", None)[0]
WORDS = Words(TOKENIZER)
ROOT = Path(__file__).parents[2]


def test_random_text_has_exactly_so_many_tokens() -> None:
    draw = random.Random(1)
    for tokens in (*range(1, 40), 512, 1000):
        assert count(TOKENIZER, [WORDS.text(tokens, draw)]) == [tokens]


def test_words_of_a_tokenizer_that_has_none_of_ours() -> None:
    """One token per character, and none with two letters: refused, with the mend."""
    vocab = {character: at for at, character in enumerate("0123456789 ")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="--dataset FILE"):
        Words(tokenizer)


def test_a_seed_draws_the_same_prompts_and_another_others() -> None:
    lengths = Lengths(50, 10, 20, 5)

    def drawn(seed: str) -> list[tuple[list[str], int]]:
        source = random_prompts(WORDS, lengths, 20, seed)
        return [(p.texts, p.output_tokens) for p in (source.take() for _ in range(20))]

    assert drawn("0 c1") == drawn("0 c1") != drawn("0 c2")
    assert len({texts[0] for texts, _ in drawn("0 c1")}) == 20


def test_lengths_are_drawn_as_llmperf_draws_them() -> None:
    draw = random.Random(0)
    made = [Lengths(100, 10, 30, 5).draw(draw) for _ in range(2000)]
    # Cut to integers: half a token less.
    assert statistics.mean(i for i, _ in made) == pytest.approx(99.5, abs=1)
    assert statistics.stdev(i for i, _ in made) == pytest.approx(10, rel=0.1)
    assert statistics.mean(o for _, o in made) == pytest.approx(29.5, abs=0.5)
    assert min(Lengths(1, 5, 1, 5).draw(draw) for _ in range(100)) >= (1, 1)


def test_lengths_stay_within_the_context() -> None:
    lengths = Lengths(500, 300, 300, 200, context=1024)
    lengths.check()
    draw = random.Random(0)
    assert max(sum(lengths.draw(draw)) for _ in range(500)) <= 1024 - 32
    with pytest.raises(PromptsError, match=r"--mean-input-tokens 661 --mean-output-tokens 330 fit"):
        Lengths(1000, 0, 500, 0, context=1024).check()
    Lengths(661, 0, 330, 0, context=1024).check()
    with pytest.raises(PromptsError, match="max_model_len of 1024"):
        Lengths(100, 0, 100, 0, context=1024).check(turns=5)
    with pytest.raises(PromptsError, match="fewer turns"):
        Lengths(100, 0, 100, 0, context=1024).check(turns=4, shared=2000)
    Lengths(10**6, 0, 10**6, 0).check()


def test_the_guides_run_fits_the_demo_model() -> None:
    Lengths(512, 20, 245, 20, context=1024).check()


def test_conversations_share_a_prefix_and_go_on_with_the_answers() -> None:
    source = conversations(WORDS, Lengths(10, 0, 5, 0), 8, "seed", turns=3, shared=40)
    a, b = source.take(), source.take()
    system = a.messages[0]
    assert system == b.messages[0]
    assert count(TOKENIZER, [system["content"]]) == [40]
    assert (a.conversation, b.conversation) == (0, 1)
    assert a.messages[1] != b.messages[1]
    source.answered(b, "said b")
    source.answered(a, "said a")
    second = source.take()
    # b has waited longest.
    assert second.messages[:3] == [*b.messages, {"role": "assistant", "content": "said b"}]
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant", "user"]
    source.answered(second, "said b again")
    a2 = source.take()
    assert a2.conversation == 0
    source.answered(a2, "")  # failed: the conversation is over
    third = source.take()
    assert (third.conversation, len(third.messages)) == (1, 6)
    source.answered(third, "the last turn")
    fresh = source.take()
    assert (fresh.conversation, len(fresh.messages)) == (2, 2)


def test_files(tmp_path: Path) -> None:
    lengths = Lengths(1, 0, 30, 0)
    text = tmp_path / "prompts.txt"
    text.write_text("first\n\nsecond\n")
    source = from_file(text, lengths, 3, "s")
    assert [source.take().texts for _ in range(3)] == [["first"], ["second"], ["first"]]
    lines = tmp_path / "prompts.jsonl"
    parts = '[{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]'
    lines.write_text(
        '{"prompt": "first", "output_tokens": 7}\n'
        f'{{"messages": [{{"role": "system", "content": "s"}}, {{"content": {parts}}}]}}\n'
    )
    source = from_file(lines, lengths, 2, "s")
    one, two = source.take(), source.take()
    assert (one.texts, one.output_tokens) == (["first"], 7)
    assert (two.texts, two.output_tokens) == (["s", "hi"], 30)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "x"}\n', "a.jsonl:2: not a prompt"),
        ("a.jsonl", b"[]\n", "a.jsonl:1"),
        ("a.jsonl", b'{"prompt": "x", "output_tokens": 0}', "a.jsonl:1"),
        ("a.jsonl", b'{"prompt": "x", "output_tokens": "many"}', "a.jsonl:1"),
        ("a.jsonl", b'{"messages": ["x"]}', "a.jsonl:1"),
        ("a.jsonl", b"{", "a.jsonl:1"),
        ("a.txt", b"\n\n", "no prompts in it"),
        ("a.txt", b"\xff\xfe", "codec can't decode"),
        ("a.txt", None, "No such file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptsError, match=said):
        from_file(path, Lengths(1, 0, 1, 0), 2, "s")


def test_where_the_tokenizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    demo = ROOT / "serve_app" / "demo_model"
    assert find(None, "any", str(demo))[1] == "neuron-serve/demo"
    # The server's path does not exist here, but it is the built-in model.
    assert find(None, "any", "/elsewhere/serve_app/demo_model")[1] == "neuron-serve/demo"
    for named in (demo, demo / "tokenizer.json"):
        assert find(str(named), "any", None)[1] == str(named)
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "tokenizer.json").write_bytes((demo / "tokenizer.json").read_bytes())
    assert find(None, "any", str(copy))[1] == str(copy)
    with pytest.raises(TokenizerError, match="--tokenizer DIRECTORY"):
        find(None, "org/model-that-is-nowhere", "/no/such/path")
    with pytest.raises(TokenizerError, match=r"no tokenizer.json at org/none"):
        find("org/none", "any", None)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="does not parse"):
        find(None, "any", str(copy))
