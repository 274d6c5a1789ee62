"""What the prefill engine is asked passes vLLM's own models whenever the client's request does."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve_app.ingress.kv_transfer import (
    CHAT,
    COMPLETIONS,
    PARAMS,
    brings_params,
    decode_request,
    prefill_request,
    why_not_split,
)

pytest.importorskip("vllm.entrypoints.openai.completion.protocol")

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

MODELS = {COMPLETIONS: CompletionRequest, CHAT: ChatCompletionRequest}
NUMBER = st.sampled_from([None, -1, 0, 1, 2, 20, "1", "2", 2.0, True])
FLAG = st.sampled_from([None, True, False])
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ANY = {
    "n": NUMBER,
    "best_of": NUMBER,
    "max_tokens": NUMBER,
    "min_tokens": NUMBER,
    "prompt_logprobs": NUMBER,
    "truncate_prompt_tokens": NUMBER,
    "truncation_side": st.sampled_from([None, "left"]),
    "thinking_token_budget": NUMBER,
    "use_beam_search": FLAG,
    "echo": FLAG,
    "stream": FLAG,
    "ignore_eos": FLAG,
    "add_special_tokens": FLAG,
    "return_token_ids": FLAG,
    "return_tokens_as_token_ids": FLAG,
    "stream_options": st.sampled_from([None, {"include_usage": True}, {}]),
    "stream_interval": st.sampled_from([None, 1, 8]),
    "stop": st.sampled_from([None, "x", ["x", "y"], []]),
    "stop_token_ids": st.sampled_from([None, [1], []]),
    "logprob_token_ids": st.sampled_from([None, [1, 2]]),
    "bad_words": st.just(["w"]),
    "allowed_token_ids": st.sampled_from([None, [3]]),
    "temperature": st.sampled_from([None, 0, 0.7]),
    "response_format": st.sampled_from([None, {"type": "json_object"}, {"type": "text"}, SCHEMA]),
    "structured_outputs": st.sampled_from([None, {"regex": "a"}, {"choice": ["a", "b"]}]),
    "vllm_xargs": st.sampled_from([None, {"a": 1}]),
    "repetition_detection": st.none(),
    "request_id": st.just("r"),
    "cache_salt": st.sampled_from([None, "s"]),
}
COMPLETION = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["text", [1, 2], ["text"], [[1, 2]], ["a", "b"], [[1], [2]], ""])},
    optional={**ANY, "logprobs": NUMBER, "suffix": st.just("s"), "prompt_embeds": st.none()},
)
CHATS = st.fixed_dictionaries(
    {"messages": st.just([{"role": "user", "content": "hello"}])},
    optional={
        **ANY,
        "logprobs": FLAG,
        "top_logprobs": NUMBER,
        "max_completion_tokens": NUMBER,
        "tools": st.sampled_from([None, [TOOL]]),
        "tool_choice": st.sampled_from(
            [None, "none", "auto", "required", {"type": "function", "function": {"name": "f"}}]
        ),
        "parallel_tool_calls": FLAG,
        "add_generation_prompt": FLAG,
        "continue_final_message": FLAG,
        "include_reasoning": FLAG,
        "reasoning_effort": st.sampled_from([None, "none", "low"]),
        "return_prompt_text": FLAG,
        "documents": st.just([{"text": "d"}]),
    },
)
REQUESTS = st.tuples(st.just(COMPLETIONS), COMPLETION) | st.tuples(st.just(CHAT), CHATS)


def parse(path: str, request: dict[str, Any]) -> Any:
    """vLLM's model of it; a copy, as its validators change what they are given."""
    return MODELS[path].model_validate(json.loads(json.dumps(request)))


def sampling(path: str, request: dict[str, Any]) -> Any:
    parsed = parse(path, request)
    limit = getattr(parsed, "max_completion_tokens", None) or parsed.max_tokens or 16
    return parsed.to_sampling_params(limit, {})


def accepted(path: str, request: dict[str, Any]) -> bool:
    try:
        sampling(path, request)
    except (ValidationError, VLLMValidationError, ValueError):
        return False
    return True


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS)
@example((COMPLETIONS, {"prompt": "p", "logprobs": 1, "logprob_token_ids": [1]}))
@example((CHAT, {"messages": [], "logprobs": True, "top_logprobs": 2, "logprob_token_ids": [1]}))
@example((CHAT, {"messages": [], "stream": True, "stream_options": {"include_usage": True}}))
@example((CHAT, {"messages": [], "tools": [TOOL], "tool_choice": "required", "min_tokens": 2}))
@example((COMPLETIONS, {"prompt": "p", "stream": True, "echo": True, "max_tokens": 9}))
def test_prefill_takes_what_decode_takes(case: tuple[str, dict[str, Any]]) -> None:
    path, request = case
    if not accepted(path, request) or why_not_split(path, request) is not None:
        return
    prefill = sampling(path, prefill_request(request))
    assert prefill.max_tokens == 1
    assert prefill.n == 1
    assert prefill.prompt_logprobs is None
    assert prefill.logprobs is None
    assert prefill.extra_args[PARAMS]["do_remote_decode"] is True

    decode = sampling(path, decode_request(request, {"do_remote_prefill": True}))
    assert decode.n == 1
    assert decode.prompt_logprobs is None  # the logits of a prompt computed elsewhere
    assert decode.extra_args.pop(PARAMS) == {"do_remote_prefill": True}
    alone = sampling(path, request)
    assert (decode.extra_args or None) == (alone.extra_args or None)
    decode.extra_args = alone.extra_args
    assert decode == alone


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS)
@example((COMPLETIONS, {"prompt": "p", "truncate_prompt_tokens": -1, "max_tokens": 20}))
@example((CHAT, {"messages": [{"role": "user", "content": "x"}], "truncate_prompt_tokens": -1}))
def test_both_engines_have_the_same_tokens(case: tuple[str, dict[str, Any]]) -> None:
    path, request = case
    if not accepted(path, request) or why_not_split(path, request) is not None:
        return

    class Config:
        max_model_len = 64

    one, other = parse(path, prefill_request(request)), parse(path, request)
    try:
        decode = other.build_tok_params(Config)
    except VLLMValidationError:
        return
    prefill = one.build_tok_params(Config)
    assert prefill.add_special_tokens == decode.add_special_tokens
    assert prefill._truncation_slice(None, 63) == decode._truncation_slice(None, 63)
    if path == CHAT:
        assert one.messages == other.messages
        assert one.build_chat_params(None, "auto") == other.build_chat_params(None, "auto")
    else:
        assert one.prompt == other.prompt


@pytest.mark.parametrize("value", ["x", ["x"], 1])
def test_vllm_would_take_a_clients_params_from_its_xargs(value: Any) -> None:
    """Then the connector asks text for `.get`, and the engine dies: such requests are refused."""
    request = {"prompt": "p", "n": 2, "vllm_xargs": {PARAMS: value}}
    assert sampling(COMPLETIONS, deepcopy(request)).extra_args == {PARAMS: value}
    assert brings_params(request)
