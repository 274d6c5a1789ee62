"""The protocol of disaggregation: one client request becomes one for each engine.

The prefill engine answers one token and `kv_transfer_params`; with these the decode engine fetches
the KV cache and generates every token itself, the first included (vLLM, docs/features/
disagg_prefill.md; vllm-neuron, docs/design/vllm/disaggregated-inference.md, read mode).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ROUTES = frozenset({COMPLETIONS, CHAT})
"""Routes whose requests are split."""
WHOLE_ROUTES = frozenset(
    {
        "/v1/responses",
        "/v1/messages",
        "/v1/chat/completions/batch",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
    }
)
"""Routes of vLLM that generate, too, and whose requests one engine serves alone."""
PARAMS = "kv_transfer_params"

_ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_OF_THE_ANSWER = (
    "stream_options",
    "stream_interval",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "logprob_token_ids",
    "echo",
    "n",
    "best_of",
    "return_token_ids",
    "return_prompt_text",
)
"""Fields about tokens that the prefill engine does not generate, or that it would only repeat."""
_BYTES_PER_TOKEN = 4
_NOT_TEXT = ("role", "type", "input_audio", "audio_embeds", "image_embeds")


def brings_params(request: Mapping[str, Any]) -> bool:
    """Whether a client says itself where a KV cache is, in one of the places vLLM reads it from."""
    sampling = request.get("sampling_params")
    extra = sampling.get("extra_args") if isinstance(sampling, Mapping) else None
    places = (request, request.get("vllm_xargs"), extra)
    return any(isinstance(place, Mapping) and PARAMS in place for place in places)


def why_not_split(path: str, request: Mapping[str, Any]) -> str | None:
    """Why a request cannot be split, in a word or two; None when it can.

    A KV cache is fetched once and then freed, so that what makes several sequences of one
    request, or reads the prompt's own logits, has to happen in one engine. So has what makes the
    prompt depend on `max_tokens`, which is another one in the prefill engine.
    """
    prompt = request.get("prompt")
    for name in ("n", "best_of"):
        if (_number(request.get(name)) or 0) > 1:
            return f"{name} > 1"
    if request.get("use_beam_search"):
        return "use_beam_search"
    # An echo in chat asks for them with `top_logprobs`, which is 0 by default, not null.
    if request.get("prompt_logprobs") is not None or (
        request.get("echo") and (path == CHAT or request.get("logprobs") is not None)
    ):
        return "prompt_logprobs"
    if path == COMPLETIONS:
        if request.get("prompt_embeds") is not None:
            return "prompt_embeds"
        if isinstance(prompt, list) and len(prompt) != 1 and not _token_ids(prompt):
            return "several prompts"
    if 0 in (_number(request.get("max_tokens")), _number(request.get("max_completion_tokens"))):
        return "max_tokens 0"
    if (_number(request.get("truncate_prompt_tokens")) or 0) < 0:
        return "truncate_prompt_tokens -1"
    return None


def prefill_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the prefill engine is asked: the same prompt, one token, and to keep the KV cache.

    `ignore_eos`, as a prompt whose first token ends the answer has a KV cache too.
    """
    shaped = {name: value for name, value in request.items() if name not in _OF_THE_ANSWER}
    shaped |= {"max_tokens": 1, "stream": False, "ignore_eos": True, PARAMS: dict(_ASK)}
    if "max_completion_tokens" in request:
        shaped["max_completion_tokens"] = 1
    return shaped


def decode_request(request: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the decode engine is asked: the client's request, and where the KV cache is."""
    return {**request, PARAMS: dict(params)}


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """About how many tokens the prompt has: exact for token ids, one per four bytes of text."""
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if isinstance(prompt, list) and _token_ids(prompt):
        return len(prompt)
    return -(-_bytes(request.get("messages") or prompt) // _BYTES_PER_TOKEN)


def _token_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _number(value: Any) -> int | None:
    """The number that vLLM reads from `value`; None where it reads none. It takes "2" and 2.0."""
    try:
        return None if value is None else int(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _bytes(value: Any) -> int:
    """UTF-8 length of all text in `value`; a picture's data URL is not text."""
    total, parts = 0, [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            if not part.startswith("data:"):
                total += len(part.encode(errors="surrogatepass"))
        elif isinstance(part, Mapping):
            parts.extend(inner for name, inner in part.items() if name not in _NOT_TEXT)
        elif isinstance(part, list):
            parts.extend(part)
    return total
