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
"""Routes whose requests are split; the decode engine serves the others by itself."""
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
    "min_tokens",
    "stop",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "echo",
    "n",
    "best_of",
)
"""Fields about tokens that the prefill engine does not generate."""
_BYTES_PER_TOKEN = 4


def whole(path: str, request: Mapping[str, Any]) -> str | None:
    """Why a request cannot be split, in a word or two; None when it can.

    A KV cache is fetched once and then freed, so that what makes several sequences of one
    request, or reads the prompt's own logits, has to happen in one engine.
    """
    prompt = request.get("prompt")
    for name in ("n", "best_of"):
        if isinstance(value := request.get(name), int) and value > 1:
            return f"{name} > 1"
    if request.get("use_beam_search"):
        return "use_beam_search"
    if request.get("prompt_logprobs") is not None or (
        request.get("echo") and request.get("logprobs") is not None
    ):
        return "prompt_logprobs"
    if path == COMPLETIONS:
        if request.get("prompt_embeds") is not None:
            return "prompt_embeds"
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return "several prompts"
    if 0 in (request.get("max_tokens"), request.get("max_completion_tokens")):
        return "max_tokens 0"
    return None


def prefill_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the prefill engine is asked: the same prompt, one token, and to keep the KV cache."""
    shaped = {name: value for name, value in request.items() if name not in _OF_THE_ANSWER}
    shaped |= {"max_tokens": 1, "stream": False, PARAMS: dict(_ASK)}
    if "max_completion_tokens" in request:
        shaped["max_completion_tokens"] = 1
    return shaped


def decode_request(request: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the decode engine is asked: the client's request, and where the KV cache is."""
    return {**request, PARAMS: dict(params)}


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """About how many tokens the prompt has: exact for token ids, one per four bytes of text."""
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return -(-_bytes(request.get("messages", prompt)) // _BYTES_PER_TOKEN)


def _bytes(value: Any) -> int:
    """UTF-8 length of all text in `value`; a picture's data URL is not text."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value.encode())
    if isinstance(value, Mapping):
        return sum(_bytes(part) for name, part in value.items() if name not in ("role", "type"))
    if isinstance(value, list):
        return sum(map(_bytes, value))
    return 0
