"""Commands in a text: what a shell would run, and whether kubectl would take it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
_KEYWORDS = {"do", "done", "until", "while", "if", "then", "fi", "xargs"}
"""Stand before a command."""
_NESTED = {"create", "create secret", "config"}
"""Commands of kubectl that have commands."""


def simple_commands(script: str) -> list[list[str]]:
    """Words of each command of a script, those in `$(...)` too, without redirections."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r" <<EOF\n.*?\nEOF(?=\n|$)", "", script, flags=re.S))
    found: list[list[str]] = []
    words: list[str] = []
    word: str | None = None
    quote, dropped, at = "", False, 0
    while at <= len(text):
        char = text[at : at + 1] or "\n"
        if text.startswith("$(", at) and quote != "'":
            end = _closing(text, at + 1)
            found += simple_commands(text[at + 2 : end])
            word, at = (word or "") + "$(...)", end
        elif char == quote:
            quote = ""
        elif quote:
            word = (word or "") + char
        elif char in "'\"":
            quote, word = char, word or ""
        elif char == "#" and word is None:
            at = text.find("\n", at) - 1 if "\n" in text[at:] else len(text)
        elif char in " \n;|&<>":
            if word is not None and not dropped:
                words.append(word)
            dropped = char in "<>" or (dropped and word is None)
            word = None
            if char in "\n;|&" and words:
                found.append(words)
                words = []
        else:
            word = (word or "") + char
        at += 1
    return [bare for each in found if (bare := _without_prefix(each))]


def _closing(text: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"no end: {text[opening:]}")


def _without_prefix(words: list[str]) -> list[str]:
    while words and (words[0] in _KEYWORDS or re.match(r"\w+=", words[0])):
        words = words[1:]
    return words


def kubectl_words(words: list[str]) -> tuple[str, list[str]]:
    """The command of kubectl, and what it gets beside flags. A flag that it has not: assertion."""
    words, verb, positional = list(words), "", []
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            name, given, _ = word.partition("=")
            known = flags("") | (flags(verb) if verb else {})
            assert name in known, f"kubectl {verb} has no {name}"
            if known[name] and not given:
                words.pop(0)
        elif not verb or verb in _NESTED:
            verb = f"{verb} {word}".strip()
        else:
            positional.append(word)
    flags(verb)
    return verb, positional


@cache
def flags(verb: str) -> dict[str, bool]:
    """Flags of a command of kubectl, and whether each takes a value; "": of all commands."""
    assert KUBECTL
    call = [KUBECTL, *verb.split(), "--help"] if verb else [KUBECTL, "options"]
    shown = subprocess.run(call, text=True, capture_output=True)
    assert shown.returncode == 0, f"kubectl {verb}: {shown.stderr}"
    usage = re.search(r"Usage:\n  kubectl (.*)", shown.stdout)
    assert not verb or (usage and usage[1].startswith(verb)), f"kubectl has no {verb}"
    found: dict[str, bool] = {}
    for short, long, default in re.findall(
        r"^ +(?:(-\w), )?(--[\w-]+)=(.*?):$", shown.stdout, re.MULTILINE
    ):
        found |= {name: default not in ("true", "false") for name in (short, long) if name}
    return found


def run(place: Path, *words: str, stdin: str = "") -> str:
    """What `kubectl` prints, run in `place`; it must not fail."""
    assert KUBECTL
    result = subprocess.run(
        [KUBECTL, *words], cwd=place, input=stdin, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
