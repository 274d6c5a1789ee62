"""Tie the engine to the accounts of requests (access/account.py), for vLLM 0.13 to 0.29.

Two places of vLLM are wrapped, both once per prompt and neither per token: `AsyncLLM.add_request`,
where prompt and `max_tokens` are known exactly, and the output processor's table of sequences,
which says whose sequence a state is. vLLM then counts in that state until it is finished or
aborted.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from serve_app.access.account import ACCOUNT, Account, Prompt, Refused

_PROMPT: ContextVar[Prompt | None] = ContextVar("prompt", default=None)


class _Sequences(dict[str, Any]):
    """vLLM's table of running sequences; tells the prompt of each that comes and goes."""

    def __init__(self, running: dict[str, Any]) -> None:
        super().__init__(running)
        self._prompts: dict[str, Prompt] = {}

    def __setitem__(self, request_id: str, state: Any) -> None:
        prompt = _PROMPT.get()
        if prompt is not None:
            prompt.sequences.append(state)
            prompt.running += 1
            self._prompts[request_id] = prompt
        super().__setitem__(request_id, state)

    def pop(self, request_id: str, *default: Any) -> Any:
        prompt = self._prompts.pop(request_id, None)
        if prompt is not None:
            prompt.running -= 1
        return super().pop(request_id, *default)


def keep_accounts(engine: Any) -> None:
    """Have `engine` (an AsyncLLM) keep the account of every request that has one."""
    add_request = engine.add_request
    by_priority = engine.vllm_config.scheduler_config.policy == "priority"

    async def add_with_account(
        request_id: str, prompt: Any, params: Any, *args: Any, **options: Any
    ) -> Any:
        account = ACCOUNT.get()
        if account is None:
            return await add_request(request_id, prompt, params, *args, **options)
        # vLLM 0.16 and later may hand over a request that is made already, with its own copy.
        copies = [params, getattr(prompt, "sampling_params", None)]
        for copy in copies:
            if account.max_tokens is not None and getattr(copy, "max_tokens", None) is not None:
                copy.max_tokens = min(copy.max_tokens, account.max_tokens)
        if account.priority is not None and by_priority:
            options["priority"] = account.priority
            if hasattr(prompt, "priority"):
                prompt.priority = account.priority
        account.adapter = getattr(options.get("lora_request"), "lora_name", None)
        entry = Prompt(_length(prompt))
        await _reserve(account, entry.tokens + _most(params))
        account.prompts.append(entry)
        token = _PROMPT.set(entry)
        try:
            return await add_request(request_id, prompt, params, *args, **options)
        finally:
            _PROMPT.reset(token)

    engine.add_request = add_with_account
    processor = engine.output_processor
    processor.request_states = _Sequences(processor.request_states)
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(_is_no_refusal)


async def _reserve(account: Account, tokens: int) -> None:
    if account.refusal is None and account.reserve is not None:
        account.refusal = await account.reserve(tokens)
    if account.refusal is not None:
        raise Refused(account.refusal.message)


def _length(prompt: Any) -> int:
    """Tokens of a prompt in any of the forms that vLLM's handlers give it; 0: not known."""
    if isinstance(prompt, dict):
        ids, embeds = prompt.get("prompt_token_ids"), prompt.get("prompt_embeds")
    else:
        ids = getattr(prompt, "prompt_token_ids", None)
        embeds = getattr(prompt, "prompt_embeds", None)
    known = ids if ids is not None else embeds
    return 0 if known is None else len(known)


def _most(params: Any) -> int:
    """The most that may be generated; nothing for pooling."""
    return (getattr(params, "max_tokens", None) or 0) * (getattr(params, "n", None) or 1)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """vLLM logs a traceback of whatever ends a stream; a refusal is an answer, no fault."""
    error = record.exc_info[1] if record.exc_info else None
    while error is not None:
        if isinstance(error, Refused):
            return False
        error = error.__cause__ or error.__context__
    return True
