"""What is asked: random text, a file of prompts, or conversations with shared prefixes."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

from serve_app.bench.tokens import Words

Message = dict[str, Any]
TEMPLATE_TOKENS = 32
"""Left free in the model's context for its chat template."""


class PromptsError(Exception):
    """What is wrong with the prompts, in one line with the mend."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of its answer: normal distributions, as LLMPerf draws them."""

    mean_input: int
    stddev_input: int
    mean_output: int
    stddev_output: int
    context: int | None = None
    """The model's max_model_len: pairs beyond it are drawn again. None: not known."""

    def check(self, turns: int = 1, shared: int = 0) -> None:
        """Raises PromptsError if the means do not fit the context."""
        needed = shared + turns * (self.mean_input + self.mean_output)
        if self.context is None or needed <= self.context - TEMPLATE_TOKENS:
            return
        room = self.context - TEMPLATE_TOKENS - shared
        share = room / (turns * (self.mean_input + self.mean_output))
        fit = (int(self.mean_input * share), int(self.mean_output * share))
        mend = f"--mean-input-tokens {fit[0]} --mean-output-tokens {fit[1]} fit"
        if min(fit) < 1:
            mend = "ask for fewer turns, or a shorter --shared-prefix-tokens"
        raise PromptsError(
            f"{needed} tokens in and out, and {TEMPLATE_TOKENS} for the chat template, are beyond "
            f"the model's max_model_len of {self.context} -> {mend}"
        )

    def draw(self, source: random.Random) -> tuple[int, int]:
        most = self.context - TEMPLATE_TOKENS if self.context else None
        while True:
            made = (
                _positive(source, self.mean_input, self.stddev_input),
                _positive(source, self.mean_output, self.stddev_output),
            )
            if most is None or sum(made) <= most:
                return made


@dataclass(slots=True)
class Prompt:
    """One request."""

    messages: list[Message]
    output_tokens: int
    """Asked for, by max_tokens."""
    conversation: int | None = None

    @property
    def texts(self) -> list[str]:
        return [_plain(message.get("content")) for message in self.messages]


class Source(Protocol):
    """Where requests come from."""

    def take(self) -> Prompt:
        """The next request."""

    def answered(self, prompt: Prompt, text: str) -> None:
        """The answer to a request, or "" if it failed."""


class Listed:
    """Prompts that were made before the load began."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = cycle(prompts)

    def take(self) -> Prompt:
        return next(self._prompts)

    def answered(self, prompt: Prompt, text: str) -> None:
        pass


@dataclass
class Conversations:
    """Conversations of several turns that begin with the same system prompt.

    A turn sends all that was said before, with the server's own answers. Whoever asks next goes
    on with the conversation that has waited longest, or begins one if all are under way.
    """

    system: str
    said: Sequence[tuple[str, int]]
    """What users say, and the tokens that each answer shall have."""
    turns: int
    _next: int = 0
    _waiting: deque[tuple[int, list[Message]]] = field(default_factory=deque)
    _begun: int = 0

    def take(self) -> Prompt:
        if self._waiting:
            number, history = self._waiting.popleft()
        else:
            number, history = self._begun, [{"role": "system", "content": self.system}]
            self._begun += 1
        text, tokens = self.said[self._next % len(self.said)]
        self._next += 1
        return Prompt([*history, {"role": "user", "content": text}], tokens, number)

    def answered(self, prompt: Prompt, text: str) -> None:
        # The system prompt, then two messages for each turn.
        if text and prompt.conversation is not None and len(prompt.messages) // 2 < self.turns:
            history = [*prompt.messages, {"role": "assistant", "content": text}]
            self._waiting.append((prompt.conversation, history))


def random_prompts(words: Words, lengths: Lengths, n: int, seed: str) -> Listed:
    draw = random.Random(seed)
    drawn = [lengths.draw(draw) for _ in range(n)]
    return Listed([Prompt(_user(words.text(i, draw)), o) for i, o in drawn])


def conversations(
    words: Words, lengths: Lengths, n: int, seed: str, turns: int, shared: int
) -> Conversations:
    """Lengths are those of one turn; `shared` is the system prompt's."""
    draw = random.Random(seed)
    system = words.text(shared, draw)
    drawn = [lengths.draw(draw) for _ in range(n)]
    return Conversations(system, [(words.text(i, draw), o) for i, o in drawn], turns)


def from_file(path: Path, lengths: Lengths, n: int, seed: str) -> Listed:
    """The file's prompts in their order, again from the begin when there are fewer than `n`.

    A line is a prompt, or, in a .jsonl file, an object with `prompt` or `messages` and, if it
    likes, `output_tokens`. Without it the answer's length is drawn.

    Raises:
        PromptsError: the file cannot be read, or a line is none of these.
    """
    draw = random.Random(seed)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptsError(f"{path}: {reason} -> --dataset takes a file of prompts") from None
    if not lines:
        raise PromptsError(f"{path}: no prompts in it -> write one per line")
    if path.suffix != ".jsonl":
        made = [Prompt(_user(line), lengths.draw(draw)[1]) for line in lines]
    else:
        made = [_of_line(f"{path}:{at}", line, lengths, draw) for at, line in enumerate(lines, 1)]
    return Listed(islice(cycle(made), n))


def _of_line(place: str, line: str, lengths: Lengths, draw: random.Random) -> Prompt:
    tokens = lengths.draw(draw)[1]
    try:
        data = json.loads(line)
        messages = data["messages"] if "messages" in data else _user(data["prompt"])
        tokens = int(data.get("output_tokens", tokens))
        good = tokens > 0 and messages and all(isinstance(one, dict) for one in messages)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise PromptsError(
            f'{place}: not a prompt -> {{"prompt": "..."}} or {{"messages": [...]}}, '
            'and "output_tokens": N if wished'
        )
    return Prompt(messages, tokens)


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _plain(content: object) -> str:
    """A message's text; parts that are not text have none."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _positive(source: random.Random, mean: int, stddev: int) -> int:
    """Cut to an integer and drawn again until it is positive, as LLMPerf does."""
    while True:
        if (made := int(source.gauss(mean, stddev))) > 0:
            return made
