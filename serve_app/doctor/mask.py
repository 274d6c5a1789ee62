"""Secrets do not leave a log by way of what the doctor prints."""

from __future__ import annotations

import re

_SECRETS = (
    (r"\b(hf_|sk-|ns-|ghp_|github_pat_)[\w-]{8,}", r"\1***"),
    (r"\b(AKIA|ASIA)[A-Z0-9]{8,}", r"\1***"),
    (r"\b(eyJ)[\w-]{8,}(?:\.[\w-]*)*", r"\1***"),
    (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}", r"\1 ***"),
    (r"(://)[^\s/@'\"]+@", r"\1***@"),
    (r"(?i)([?&](?:X-Amz-[\w-]+|Signature|sig|token|key)=)[^&\s'\"]+", r"\1***"),
    (
        # HF_TOKEN=..., "api_key": "...", password: ...
        r"(?i)((?:password|passwd|secret|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|authorization)"
        r"[\"']?\s?[=:]\s?[\"']?)(?![\s\"'*<{\[]|\w+://)[^\s\"',;&)}\]]{4,}",
        r"\1***",
    ),
)
"""What a secret looks like, and what is left of it."""

_COMPILED = [(re.compile(pattern), left) for pattern, left in _SECRETS]

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(raw: bytes) -> str:
    """Text of a log that may be shown: no secrets, no escape sequences of a terminal."""
    text = _CONTROLS.sub("", raw.decode(errors="replace"))
    for pattern, left in _COMPILED:
        text = pattern.sub(left, text)
    return text
