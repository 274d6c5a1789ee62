"""What a streamed chat completion said, and when, from the bytes of its exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serve_app.bench.wire import Exchange

_SHOWN = 300
"""Characters of a server's message that are kept."""


@dataclass(slots=True)
class Answer:
    """Times are those of `time.perf_counter`."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    """When each event with text came. An event may hold several tokens."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counted them, with its chat template."""
    error: tuple[str | int, str] | None = None
    """(code, message): the HTTP status, the code of an error event, or a word.

    Words: unreachable, cut-off, silent, not-http (`serve_app.bench.wire`); bad-event, error-event,
    no-tokens.
    """


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


# A Struct skips what is not asked for: 1 us per event, json.loads takes 5.
_EVENT = msgspec.json.Decoder(_Event)


def read(exchange: Exchange) -> Answer:
    """Never raises for what a server sent: the answer's error says it."""
    answer, texts = Answer(error=exchange.error), []
    if exchange.error is None and exchange.status != 200:
        answer.error = (exchange.status, message_of(exchange.body))
    if exchange.status != 200:
        return answer
    done = False
    try:
        for at, data in events(exchange):
            if data == b"[DONE]":
                done = True
                continue
            event = _EVENT.decode(data)
            if event.error is not None:
                answer.error = _named(event.error)
                break
            for choice in event.choices:
                answer.finish_reason = choice.finish_reason or answer.finish_reason
                if text := _text(choice.delta):
                    answer.times.append(at)
                    texts.append(text)
            if event.usage is not None:
                answer.prompt_tokens = event.usage.prompt_tokens
                answer.completion_tokens = event.usage.completion_tokens
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        answer.error = ("bad-event", f"{error}: {data[:80]!r}")
    answer.text = "".join(texts)
    if answer.error is None:
        answer.error = _missing(answer, done)
    return answer


def events(exchange: Exchange) -> Iterator[tuple[float, bytes]]:
    """(time, data) of each server-sent event, at the time when its last byte came.

    As the HTML standard has it: events end with a blank line, comments are skipped, several
    `data` lines are one.
    """
    rest = b""
    for at, piece in zip(exchange.times, exchange.pieces, strict=True):
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            if b"\n" not in event and event.startswith(b"data: "):
                yield at, event[6:]
                continue
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield at, b"\n".join(lines)


def message_of(body: bytes) -> str:
    """The message of an OpenAI error body, else the body's first line."""
    try:
        found = msgspec.json.decode(body)
        error = found.get("error", found)
        text = error if isinstance(error, str) else str(error["message"])
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        text = body.decode(errors="replace").strip()
    return text.partition("\n")[0][:_SHOWN]


def _text(delta: _Delta) -> str:
    """All that was generated, be it an answer, a thought or a call."""
    text = delta.content or delta.reasoning_content or delta.reasoning or ""
    for call in delta.tool_calls or ():
        function = call.get("function") or {}
        text += (function.get("name") or "") + (function.get("arguments") or "")
    return text


def _named(error: Any) -> tuple[str | int, str]:
    if not isinstance(error, dict):
        return "error-event", str(error)[:_SHOWN]
    code = error.get("code")
    message = str(error.get("message", error))[:_SHOWN]
    return (code if isinstance(code, str | int) else "error-event"), message


def _missing(answer: Answer, done: bool) -> tuple[str, str] | None:
    if not done and answer.finish_reason is None:
        return "cut-off", "the stream ended without finish_reason and [DONE]"
    if not answer.times and not answer.completion_tokens:
        return "no-tokens", f"the stream ended without any text ({answer.finish_reason})"
    return None
