"""One request becomes two: any JSON object, never an exception, and the same prompt in both."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.kv_transfer import (
    CHAT,
    COMPLETIONS,
    PARAMS,
    brings_params,
    decode_request,
    prefill_request,
    prompt_tokens,
    why_not_split,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=["L", "N", "Cs"])),  # Cs: halves of a pair, not UTF-8
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["n", "best_of", "use_beam_search", "prompt_logprobs", "echo", "logprobs"]
NAMES += ["prompt", "prompt_embeds", "messages", "max_tokens", "max_completion_tokens"]
NAMES += ["truncate_prompt_tokens", "vllm_xargs", "sampling_params", "stop", "stream", PARAMS]
JUNK = st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=8)
PATHS = st.sampled_from([COMPLETIONS, CHAT])
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

OF_THE_PROMPT = {
    "model": "m",
    "prompt": "p",
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "chat_template": "t",
    "chat_template_kwargs": {"enable_thinking": False},
    "add_generation_prompt": False,
    "continue_final_message": True,
    "add_special_tokens": False,
    "documents": [{"text": "d"}],
    "reasoning_effort": "low",
    "truncate_prompt_tokens": 7,
    "truncation_side": "left",
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {"video": {"num_frames": 1}},
    "cache_salt": "salt",
    "priority": 3,
    "request_id": "r",
    "seed": 1,
    "some_field_of_tomorrow": "x",
}


@given(PATHS, JUNK)
def test_no_object_raises_and_none_is_changed(path: str, request: dict[str, Any]) -> None:
    before = deepcopy(request)
    reason = why_not_split(path, request)
    assert reason is None or reason
    assert prompt_tokens(request) >= 0
    assert brings_params(request) in (True, False)
    prefill, decode = prefill_request(request), decode_request(request, {"remote": 1})
    json.dumps([prefill, decode])
    prefill[PARAMS]["remote_host"] = decode[PARAMS]["remote_host"] = "elsewhere"
    assert repr(request) == repr(before)  # NaN is not equal to itself
    assert prefill_request(request)[PARAMS]["remote_host"] is None


@given(JUNK, st.dictionaries(st.text(), JSON, max_size=3))
def test_decode_gets_the_request_as_it_is_and_the_params(
    request: dict[str, Any], params: dict[str, Any]
) -> None:
    decode = decode_request(request, params)
    assert decode.pop(PARAMS) is not params
    request.pop(PARAMS, None)
    assert repr(decode) == repr(request)


def test_prefill_gets_all_that_makes_the_prompt() -> None:
    prefill = prefill_request(OF_THE_PROMPT)
    assert {name: prefill[name] for name in OF_THE_PROMPT} == OF_THE_PROMPT


@pytest.mark.parametrize("limit", [{}, {"max_tokens": None}, {"max_tokens": 99}])
@pytest.mark.parametrize("completion", [{}, {"max_completion_tokens": None}])
def test_prefill_makes_one_token_at_once(limit: dict[str, Any], completion: dict[str, Any]) -> None:
    prefill = prefill_request({**HELLO, **limit, **completion, "stream": True})
    assert prefill["max_tokens"] == 1
    assert prefill["stream"] is False
    assert prefill.get("max_completion_tokens") == (1 if completion else None)
    assert prefill["ignore_eos"] is True
    assert prefill[PARAMS]["do_remote_decode"] is True
    assert prefill[PARAMS]["do_remote_prefill"] is False


@pytest.mark.parametrize(
    "field",
    [
        {"stream_options": {"include_usage": True}},
        {"stream_interval": 5},
        {"min_tokens": 20},
        {"stop": ["."]},
        {"stop_token_ids": [1]},
        {"logprobs": 5},
        {"top_logprobs": 5},
        {"logprob_token_ids": [1]},
        {"echo": True},
        {"n": 1},
        {"best_of": 1},
        {"return_token_ids": True},
        {"return_prompt_text": True},
    ],
    ids=lambda field: next(iter(field)),
)
def test_prefill_is_not_asked_about_tokens_it_does_not_make(field: dict[str, Any]) -> None:
    assert prefill_request({"prompt": "p", **field}).keys().isdisjoint(field)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 2}, "n > 1"),
        ({"n": "2"}, "n > 1"),  # vLLM reads numbers from text and from 2.0 too
        ({"n": 2.0}, "n > 1"),
        ({"best_of": 3}, "best_of > 1"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"use_beam_search": "true"}, "use_beam_search"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 0}, "prompt_logprobs"),
        ({"echo": "true", "logprobs": True}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"max_tokens": "0"}, "max_tokens 0"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_tokens 0"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens -1"),
        ({"truncate_prompt_tokens": "-1"}, "truncate_prompt_tokens -1"),
    ],
)
def test_what_one_engine_has_to_do(path: str, fields: dict[str, Any], reason: str) -> None:
    assert why_not_split(path, {**HELLO, "prompt": "p", **fields}) == reason


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": None},
        {"n": "one"},
        {"n": [2]},
        {"best_of": 1},
        {"use_beam_search": False},
        {"prompt_logprobs": None},
        {"logprobs": 5},
        {"echo": False, "logprobs": 5},
        {"max_tokens": 1},
        {"max_tokens": None},
        {"max_tokens": None, "max_completion_tokens": None},
        {"truncate_prompt_tokens": 8},
        {"tool_choice": "required"},
        {"min_tokens": 3},
    ],
    ids=repr,
)
def test_what_can_be_split(path: str, fields: dict[str, Any]) -> None:
    assert why_not_split(path, {**HELLO, "prompt": "p", **fields}) is None


def test_an_echo_reads_the_prompts_logits_in_chat_only() -> None:
    assert why_not_split(CHAT, {**HELLO, "echo": True}) == "prompt_logprobs"
    assert why_not_split(COMPLETIONS, {"prompt": "p", "echo": True}) is None


@pytest.mark.parametrize("prompt", ["text", [1, 2], ["text"], [[1, 2]], None, "", [1]], ids=repr)
def test_one_prompt_is_split(prompt: Any) -> None:
    assert why_not_split(COMPLETIONS, {"prompt": prompt}) is None


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], []], ids=repr)
def test_several_prompts_are_not(prompt: Any) -> None:
    assert why_not_split(COMPLETIONS, {"prompt": prompt}) == "several prompts"
    assert why_not_split(CHAT, {**HELLO, "prompt": prompt}) is None  # chat does not read the field


def test_embeddings_are_not_split() -> None:
    assert why_not_split(COMPLETIONS, {"prompt_embeds": "AAAA"}) == "prompt_embeds"
    assert why_not_split(COMPLETIONS, {"prompt": "p", "prompt_embeds": None}) is None


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({"prompt": "12345678"}, 2),
        ({"prompt": "123456789"}, 3),
        ({"prompt": "äöüß"}, 2),
        ({"prompt": "\ud800"}, 1),
        ({"prompt": ["12345678"]}, 2),
        ({"prompt": [5, 6, 7]}, 3),
        ({"prompt": [[5, 6, 7]]}, 3),
        ({"prompt": "12345678", "messages": None}, 2),
        ({"prompt": None}, 0),
        ({"prompt": []}, 0),
        ({}, 0),
        ({"messages": [{"role": "a-very-long-role", "content": "12345678"}]}, 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1234"}]}]}, 1),
        ({"messages": [{"content": {"image_url": {"url": "data:image/png;base64,AAAA"}}}]}, 0),
        ({"messages": [{"content": [{"input_audio": {"data": "A" * 4000}}]}]}, 0),
        ({"messages": [None, 5, [None], {"content": None}]}, 0),
        ({"messages": "1234"}, 1),
    ],
)
def test_length_of_a_prompt(request_: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(request_) == tokens


def test_a_prompt_nested_as_deep_as_json_goes() -> None:
    prompt: Any = "1234"
    for _ in range(50_000):
        prompt = [prompt]
    assert prompt_tokens({"prompt": prompt}) == 1
    while isinstance(prompt, list):  # or else Python frees it recursively
        prompt = prompt.pop()


@pytest.mark.parametrize("params", [None, "x", {"remote_host": "h"}])
def test_clients_do_not_say_where_a_cache_is(params: Any) -> None:
    given = {PARAMS: params}
    assert brings_params({"prompt": "p", **given})
    assert brings_params({"prompt": "p", "vllm_xargs": given})
    assert brings_params({"token_ids": [1], "sampling_params": {"extra_args": given}})


def test_others_of_their_words_are_not_taken_for_it() -> None:
    assert not brings_params({"prompt": PARAMS, "messages": [{"content": PARAMS}]})
    assert not brings_params({"vllm_xargs": [PARAMS], "sampling_params": PARAMS})
    assert not brings_params({"tools": [{"function": {"name": PARAMS, "parameters": {PARAMS: 1}}}]})
