"""The model's own tokenizer, without transformers: `tokenizer.json` read by `tokenizers`."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tokenizers import Tokenizer

_DEMO = "neuron-serve/demo"
_FILE = "tokenizer.json"
_WORD = re.compile(r"[A-Za-z]{2,12}")
_TRIES = 50


class TokenizerError(Exception):
    """No tokenizer, in one line with the mend."""


def find(named: str | None, model: str, root: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer and where it came from.

    `named` is the user's word, a directory, file or hub repository, which may be downloaded; else
    the model's `root` of /v1/models, a directory here or a cached hub repository.

    Raises:
        TokenizerError: none of them has a tokenizer.json.
    """
    if named is not None:
        found = _local(named) or _of_hub(named, download=True)
        if found is None:
            raise TokenizerError(
                f"no {_FILE} at {named} -> --tokenizer takes a directory, file or hub repository"
            )
        return _load(found), named
    for name in dict.fromkeys((root, model)):
        if name == _DEMO or (name or "").endswith("/serve_app/demo_model"):
            return _load(Path(__file__).parents[1] / "demo_model" / _FILE), _DEMO
        if name and (found := _local(name) or _of_hub(name, download=False)):
            return _load(found), name
    raise TokenizerError(
        f"no {_FILE} for {root or model} here -> --tokenizer DIRECTORY, or the hub repository to "
        "download it from"
    )


def count(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Tokens of each text, without those that mark its begin or end."""
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [len(encoding) for encoding in found]


class Words:
    """Random text of an exact number of tokens: words that are one token each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        known = tokenizer.get_vocab()
        plain = {re.sub(r"^[Ġ▁]|</w>$", "", token) for token in known if len(token) > 2}
        words = sorted(word for word in plain if _WORD.fullmatch(word))
        lengths = count(tokenizer, [f" {word}" for word in words])
        self._words = [word for word, n in zip(words, lengths, strict=True) if n == 1] or words
        if not self._words:
            raise TokenizerError("the tokenizer has no words of latin letters -> --dataset FILE")

    def text(self, tokens: int, draw: random.Random) -> str:
        """Text that is `tokens` tokens by itself; words are added or taken until it is.

        Raises:
            TokenizerError: the tokenizer does not settle on that number.
        """
        words = draw.choices(self._words, k=tokens)
        for _ in range(_TRIES):
            text = " ".join(words)
            over = count(self._tokenizer, [text])[0] - tokens
            if over == 0 and text:
                return text
            # A word at the begin or between others may take more tokens than one.
            kept = max(0, len(words) - over - 1)
            words = words[:kept] + draw.choices(self._words, k=max(1, len(words) - over - kept))
        raise TokenizerError(f"no text of {tokens} tokens was found -> --dataset FILE")


def _local(name: str) -> Path | None:
    path = Path(name).expanduser()
    path = path / _FILE if path.is_dir() else path
    return path if path.is_file() else None


def _of_hub(name: str, download: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    for offline in (True, False) if download else (True,):
        try:
            return Path(hf_hub_download(name, _FILE, local_files_only=offline))
        except (
            OSError,
            ValueError,
            EntryNotFoundError,
            RepositoryNotFoundError,
            HFValidationError,
        ):
            continue
    return None


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises nothing more precise
        raise TokenizerError(f"{path} does not parse: {error}") from None
