"""A sweep: point after point, each with its warm-up, each written before the next begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop
from tokenizers import Tokenizer

from serve_app.bench import llmperf, prompts
from serve_app.bench.endpoint import Endpoint
from serve_app.bench.load import Load, Run, Sender, measure, warm_up
from serve_app.bench.prompts import Lengths, Source
from serve_app.bench.tokens import Words
from serve_app.bench.wire import Client
from serve_app.version import VERSION

Tell = Callable[[Load, Run], None]


@dataclass(frozen=True)
class Dataset:
    """random, conversations, or a file of prompts."""

    name: str
    turns: int = 1
    shared_prefix_tokens: int = 0

    def check(self, lengths: Lengths) -> None:
        """Raises PromptsError for what no request could be made of."""
        if self.name == "conversations":
            lengths.check(self.turns, self.shared_prefix_tokens)
        elif self.name == "random":
            lengths.check()
        else:
            prompts.from_file(Path(self.name), lengths, 1, "")

    def source(self, words: Words | None, lengths: Lengths, n: int, seed: str) -> Source:
        """`words` is needed for all but files."""
        if words is None:
            return prompts.from_file(Path(self.name), lengths, n, seed)
        if self.name == "random":
            return prompts.random_prompts(words, lengths, n, seed)
        return prompts.conversations(words, lengths, n, seed, self.turns, self.shared_prefix_tokens)

    @property
    def of_words(self) -> bool:
        return self.name in ("random", "conversations")


@dataclass(frozen=True)
class Sweep:
    """What to measure, and how."""

    endpoint: Endpoint
    tokenizer: Tokenizer
    tokenizer_name: str
    loads: Sequence[Load]
    lengths: Lengths
    dataset: Dataset
    seed: int
    warm_up: int | None
    """Requests before each point that are not counted; None: one per user."""
    extra: dict[str, Any]
    """Further keys of every request."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A point that is over."""

    load: Load
    run: Run
    summary: dict[str, Any]
    file: Path


def run(sweep: Sweep, directory: Path, key: str | None, tell: Tell) -> Iterator[Point]:
    """Each point, with its files written. After an interrupted one there is no further.

    Raises:
        OSError: the files cannot be written.
    """
    words = Words(sweep.tokenizer) if sweep.dataset.of_words else None
    for load in sweep.loads:
        warm = _warm_up(sweep, load)
        sources = (
            _source(sweep, words, warm, f"{load.label} warm-up"),
            _source(sweep, words, load.requests, load.label),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            made = runner.run(_point(sweep, load, sources, warm, key, tell))
        if made.records or not made.interrupted:
            yield _written(sweep, load, made, warm, directory)
        if made.interrupted:
            raise KeyboardInterrupt


def _warm_up(sweep: Sweep, load: Load) -> int:
    return (load.concurrency or 1) if sweep.warm_up is None else sweep.warm_up


def _source(sweep: Sweep, words: Words | None, n: int, label: str) -> Source:
    # Every point has prompts of its own: the server's prefix cache would know those of the last.
    return sweep.dataset.source(words, sweep.lengths, max(n, 1), f"{sweep.seed} {label}")


async def _point(
    sweep: Sweep,
    load: Load,
    sources: tuple[Source, Source],
    warm: int,
    key: str | None,
    tell: Tell,
) -> Run:
    endpoint = sweep.endpoint
    client = Client(endpoint.chat, key)
    # The same prompts may have been sent by an earlier run: vLLM keeps them apart by a salt.
    salt = {"cache_salt": uuid4().hex} if endpoint.vllm else {}
    sender = Sender(client, endpoint.model, endpoint.vllm, salt | sweep.extra)
    try:
        await warm_up(sender, sources[0], warm, load.concurrency or 1)
        return await measure(
            sender, load, sources[1], f"{sweep.seed} {load.label}", lambda run: tell(load, run)
        )
    finally:
        client.close()


def _written(sweep: Sweep, load: Load, run: Run, warm: int, directory: Path) -> Point:
    requests = llmperf.individual(run, sweep.tokenizer)
    lengths, endpoint = sweep.lengths, sweep.endpoint
    name = llmperf.stem(endpoint.model, lengths.mean_input, lengths.mean_output, load.label)
    about = {
        "model": endpoint.model,
        "mean_input_tokens": lengths.mean_input,
        "stddev_input_tokens": lengths.stddev_input,
        "mean_output_tokens": lengths.mean_output,
        "stddev_output_tokens": lengths.stddev_output,
        "num_concurrent_requests": load.concurrency,
        "additional_sampling_params": sweep.extra,
        "request_rate": load.rate,
        "loop": "closed" if load.rate is None else "open",
        "max_num_completed_requests": load.requests,
        "timeout_s": load.timeout_s,
        "warm_up_requests": warm,
        "dataset": sweep.dataset.name,
        "seed": sweep.seed,
        "endpoint": endpoint.url,
        "max_model_len": endpoint.max_model_len,
        "exact_output_lengths": endpoint.vllm,
        "tokenizer": sweep.tokenizer_name,
        "client": f"neuron-serve {VERSION}",
        **endpoint.facts,
        **sweep.metadata,
    }
    if sweep.dataset.name == "conversations":
        about["turns"] = sweep.dataset.turns
        about["shared_prefix_tokens"] = sweep.dataset.shared_prefix_tokens
    summary = llmperf.summary(f"{name}_summary", run, requests, about)
    return Point(load, run, summary, llmperf.write(directory, name, summary, requests))
