"""Keys, quotas and the record of use around an app and an engine that behave like vLLM's."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.access.account import ACCOUNT, Account, Refused
from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import dump, issue
from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.quota import Quota, Refusal
from serve_app.access.usage import UsageLog
from serve_app.engine.accounts import keep_accounts
from serve_app.ingress import access as module
from serve_app.ingress.access import Access, AccessMiddleware
from serve_app.ingress.body import read
from serve_app.ingress.first_byte import FirstByteMiddleware
from serve_app.ingress.in_process import post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]}


@dataclass
class Params:
    max_tokens: int | None = 10
    n: int = 1


class Engine:
    """As much of AsyncLLM as counts: a state per sequence, counted up while it generates."""

    def __init__(self, policy: str = "fcfs") -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy=policy))
        self.output_processor = SimpleNamespace(request_states={})
        self.given: list[dict[str, Any]] = []

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, **options: Any
    ) -> list[Any]:
        self.given.append({"prompt": prompt, "params": params, **options})
        await asyncio.sleep(0)
        states = []
        for index in range(params.n):
            state = SimpleNamespace(
                is_prefilling=True, stats=SimpleNamespace(num_generation_tokens=0)
            )
            self.output_processor.request_states[f"{index}_{request_id}"] = state
            states.append(state)
        return states

    def let_go(self) -> None:
        """All sequences are finished or aborted."""
        for name in [*self.output_processor.request_states]:
            self.output_processor.request_states.pop(name)


def generate(states: Iterable[Any], tokens: int) -> None:
    for state in states:
        state.is_prefilling = False
        state.stats.num_generation_tokens += tokens


@dataclass
class App:
    """A route of vLLM: gives prompts to the engine and answers, whole or as a stream."""

    engine: Engine
    prompts: list[int] = field(default_factory=lambda: [5])
    """Tokens of each."""
    params: Params = field(default_factory=Params)
    made: int = 3
    """Tokens of each sequence."""
    stream: bool = False
    events: list[bytes] = field(default_factory=list)
    """Sent before the engine is asked."""
    hangs: bool = False
    fails: bool = False
    late: bool = False
    """The engine goes on when the route has ended."""
    called: int = 0
    body: bytes | None = None
    account: Account | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            if not self.late:
                self.engine.let_go()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called += 1
        self.account = ACCOUNT.get()
        if scope["type"] == "websocket":
            return await send({"type": "websocket.accept"})
        self.body = await read(receive) if scope["method"] == "POST" else b""
        if self.stream:
            await send({**START, "headers": [(b"content-type", b"text/event-stream")]})
            for event in self.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        try:
            for number, tokens in enumerate(self.prompts):
                prompt = {"prompt_token_ids": [1] * tokens}
                generate(await self.engine.add_request(str(number), prompt, self.params), self.made)
        except ValueError as error:  # as vLLM tells the client
            if not self.stream:
                await send({**START, "status": 400})
            said = json.dumps({"error": {"message": str(error), "code": 400}}).encode()
            events = [b"data: " + said + b"\n\n", b"data: [DONE]\n\n", b""]
            for event in events:
                more = event != b""
                await send({"type": "http.response.body", "body": event, "more_body": more})
            return None
        if self.hangs:
            await receive()
            return None
        if self.fails:
            raise RuntimeError("engine is dead")
        if not self.stream:
            await send(START)
        return await send({"type": "http.response.body", "body": b"done"})


class Case:
    """The middleware with everything real around a stand-in app."""

    def __init__(self, folder: Path, **quota: Any) -> None:
        self.folder = folder
        self.now = 1_700_000_010.0
        self.texts: dict[str, str] = {}
        keys = []
        for name, fields in {
            "ann": quota,
            "root": {"admin": True},
            "some": {"models": ["llama"]},
            "old": {"expires": datetime(2020, 1, 1, tzinfo=UTC)},
        }.items():
            key, self.texts[name] = issue({"name": name, **fields})
            keys.append(key)
        (folder / "keys.yaml").write_text(dump(keys))
        file = KeyFile(folder / "keys.yaml")
        file.load()
        self.engine = Engine("priority")
        keep_accounts(self.engine)
        self.app = App(self.engine)
        self.ledger = Ledger("memory", lambda: self.now)
        self.usage = UsageLog(folder, "r1", lambda: self.now)
        self.models = ["llama", "qwen"]
        self.access = Access("app", lambda: self.models, file, self.ledger, self.usage)
        self.middleware = AccessMiddleware(FirstByteMiddleware(self.app), self.access)

    async def ask(
        self,
        who: str | None = "ann",
        path: str = CHAT,
        method: str = "POST",
        body: bytes = b'{"model": "llama"}',
        kind: bytes = b"application/json",
        **more: Any,
    ) -> Answer:
        sent: list[Message] = []
        left = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return left.pop() if left else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", kind)]
        if who is not None:
            headers.append((b"authorization", f"Bearer {self.texts.get(who, who)}".encode()))
        scope = {"type": "http", "method": method, "path": path, "headers": headers, **more}
        try:
            await self.middleware(scope, receive, send)
        finally:
            while self.access.settling:
                await asyncio.gather(*self.access.settling)
            assert ACCOUNT.get() is None
            assert not self.access.open
        return Answer(sent)

    def used(self) -> list[dict[str, Any]]:
        """The record."""
        self.usage.flush()
        lines = [one.read_text().splitlines() for one in self.folder.glob("*.jsonl")]
        return [json.loads(line) for each in lines for line in each]

    async def left(self, **quota: int) -> tuple[int | None, int | None]:
        standing = await self.ledger.standing("ann", Quota(**quota))
        return standing.remaining_requests, standing.remaining_tokens


@dataclass
class Answer:
    sent: list[Message]

    @property
    def status(self) -> int:
        starts = [one for one in self.sent if one["type"] == "http.response.start"]
        assert len(starts) == 1
        return int(starts[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode().lower(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(one.get("body", b"") for one in self.sent)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


@pytest.fixture
async def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (None, "missing_api_key"),
        ("sk-123", "malformed_api_key"),
        ("ns-none-" + "a" * 43, "invalid_api_key"),
        ("old", "expired_api_key"),
    ],
)
async def test_who_has_no_key(case: Case, who: str | None, code: str) -> None:
    answer = await case.ask(who)
    assert (answer.status, answer.error["code"]) == (401, code)
    assert answer.error["type"] == "AuthenticationError"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not case.app.called
    assert case.used() == []


async def test_a_wrong_secret_of_a_known_key(case: Case) -> None:
    right = case.texts["ann"]
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    answer = await case.ask(wrong)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert wrong not in answer.body.decode()


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_probes_need_no_key(case: Case, path: str) -> None:
    assert (await case.ask(None, path, "GET")).status == 200


@pytest.mark.parametrize("path", ["/healthy", "/health/", "/v1/models", "/metrics", "/docs", "/"])
async def test_everything_else_does(case: Case, path: str) -> None:
    assert (await case.ask(None, path, "GET")).status == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/collective_rpc", "/docs"],
)
async def test_routes_of_admins(case: Case, path: str) -> None:
    answer = await case.ask("ann", path)
    assert (answer.status, answer.error["type"]) == (403, "PermissionDeniedError")
    assert not case.app.called
    assert (await case.ask("root", path)).status == 200


async def test_below_a_prefix_the_same_routes_count(case: Case) -> None:
    prefix = {"root_path": "/a"}
    assert (await case.ask(None, "/a/health", "GET", **prefix)).status == 200
    assert (await case.ask("ann", "/a/sleep", **prefix)).status == 403
    assert (await case.ask("ann", f"/a{CHAT}", **prefix)).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "llama"}', 200),
        (b'{"model": "qwen"}', 404),
        (b'{"model": "llama", "model": "qwen"}', 404),
        (b'{"model": "qwen", "model": "llama"}', 200),
        (b'{"mod\\u0065l": "qwen"}', 404),
        (b'{"model": "none"}', 404),
    ],
)
async def test_a_key_for_some_models(case: Case, body: bytes, status: int) -> None:
    answer = await case.ask("some", body=body)
    assert answer.status == status
    assert case.app.called == (status == 200)
    if status == 200:
        assert case.app.body == body
    else:
        assert (answer.error["type"], answer.error["param"]) == ("NotFoundError", "model")


async def test_a_key_for_some_models_and_no_request(case: Case) -> None:
    answer = await case.ask("some", body=b"no json")
    assert answer.status == 400
    assert not case.app.called


@pytest.mark.parametrize("body", [b"{}", b'{"model": null}', b'{"model": ""}'])
async def test_a_key_for_some_models_must_name_one(case: Case, body: bytes) -> None:
    """Without a name vLLM takes the first that is served."""
    case.models = ["qwen", "llama"]
    assert (await case.ask("some", body=body)).status == 404
    assert not case.app.called


async def test_what_was_used_is_recorded(case: Case) -> None:
    case.app.params, case.app.prompts = Params(n=2), [5, 7]
    answer = await case.ask()
    assert (answer.status, answer.body, answer.headers) == (200, b"done", {"x-own": "1"})
    (use,) = case.used()
    expected = {
        "key": "ann",
        "application": "app",
        "model": "llama",
        "route": CHAT,
        "status": 200,
        "prompt_tokens": 12,
        "completion_tokens": 12,
        "aborted": False,
    }
    assert use.items() >= expected.items()


async def test_too_many_requests(tmp_path: Path) -> None:
    case = Case(tmp_path, requests_per_minute=1)
    first = await case.ask()
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    answer = await case.ask()
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert case.app.called == 1


async def test_too_many_at_once(tmp_path: Path) -> None:
    case = Case(tmp_path, concurrent_requests=1)
    await case.ledger.admit("ann", Quota(concurrent_requests=1), "other")
    answer = await case.ask()
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    await case.ledger.settle("ann", Quota(concurrent_requests=1), "other", 0)
    assert (await case.ask()).status == 200
    assert (await case.ask()).status == 200  # the slot came back


async def test_a_refusal_of_tokens_is_the_answer(tmp_path: Path) -> None:
    """Whatever vLLM makes of it."""
    case = Case(tmp_path, tokens_per_minute=20)
    await case.ledger.reserve("ann", Quota(tokens_per_minute=20), "other", 10)
    answer = await case.ask()  # 5 + 10
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert "requested 15" in answer.error["message"]
    assert answer.headers["x-ratelimit-limit-tokens"] == "20"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert await case.left(tokens_per_minute=20) == (None, 10)
    (use,) = case.used()
    assert (use["status"], use["prompt_tokens"], use["aborted"]) == (429, 0, False)
    assert case.engine.given == []


@pytest.mark.parametrize("early", [False, True])
async def test_a_refusal_inside_a_stream(tmp_path: Path, early: bool) -> None:
    """vLLM asks the engine after the head of a stream; of a later prompt, after some events."""
    case = Case(tmp_path, tokens_per_minute=20)
    await case.ledger.reserve("ann", Quota(tokens_per_minute=20), "other", 10)
    case.app.stream, case.app.events = True, [] if early else [b"data: 1\n\n"]
    answer = await case.ask()
    assert answer.status == (429 if early else 200)
    if not early:
        first, last, rest = answer.body.split(b"\n\n")
        assert (first, rest) == (b"data: 1", b"")
        message = json.loads(last.removeprefix(b"data: "))["error"]["message"]
        assert message.startswith("Rate limit reached on tokens per minute")
    else:
        assert answer.error["code"] == "rate_limit_exceeded"
    assert not answer.sent[-1].get("more_body")
    assert case.used()[0]["status"] == 429


async def test_a_form_names_its_model_too(case: Case) -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nqwen\r\n--x--\r\n'
    assert (
        await case.ask("some", body=part, kind=b"multipart/form-data; boundary=x")
    ).status == 404


async def test_what_can_never_pass_has_no_time_to_retry(tmp_path: Path) -> None:
    case = Case(tmp_path, tokens_per_minute=10)
    answer = await case.ask()
    assert answer.status == 429
    assert "retry-after" not in answer.headers


async def test_several_prompts_share_one_reservation(tmp_path: Path) -> None:
    case = Case(tmp_path, tokens_per_minute=40)
    case.app.prompts = [5, 5, 50]
    answer = await case.ask()
    assert answer.status == 429
    # The first two were computed, three tokens each: they are what was used.
    assert await case.left(tokens_per_minute=40) == (None, 24)


async def test_tokens_are_settled_once(tmp_path: Path) -> None:
    case = Case(tmp_path, tokens_per_minute=100)
    for left in (92, 84):
        assert (await case.ask()).status == 200
        assert await case.left(tokens_per_minute=100) == (None, left)


async def test_with_nothing_left_the_app_is_not_asked(tmp_path: Path) -> None:
    case = Case(tmp_path, tokens_per_minute=20, concurrent_requests=1)
    await case.ledger.reserve("ann", Quota(tokens_per_minute=20), "other", 20)
    for _ in range(2):  # and its slot comes back
        answer = await case.ask()
        assert answer.status == 429
        assert "tokens per minute" in answer.error["message"]
    assert not case.app.called


@pytest.mark.parametrize("how", ["disconnect", "exception", "cancel"])
async def test_what_was_cut_off_is_counted(tmp_path: Path, how: str) -> None:
    quota = {"tokens_per_minute": 100, "concurrent_requests": 1}
    case = Case(tmp_path, **quota)
    if how == "disconnect":
        case.app.hangs = True
        assert (await case.ask()).sent == []
    elif how == "exception":
        case.app.fails = True
        with pytest.raises(RuntimeError):
            await case.ask()
    else:

        async def never(*_: Any, **__: Any) -> None:
            await asyncio.get_running_loop().create_future()

        case.app.prompts, case.app.hangs = [5], True
        case.middleware.app = lambda s, r, w: case.app(s, _then(r, never), w)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.05):
                await case.ask()
    (use,) = case.used()
    assert (use["status"], use["aborted"]) == (499, True)
    assert (use["prompt_tokens"], use["completion_tokens"]) == (5, 3)
    assert await case.left(**quota) == (None, 92)
    case.app.hangs = case.app.fails = False
    assert (await case.ask()).status == 200  # the slot came back


async def test_a_step_that_comes_late_is_counted(tmp_path: Path) -> None:
    """On a busy machine the engine lets go of a request long after its client."""
    case = Case(tmp_path)
    case.app.hangs = case.app.late = True
    asking = asyncio.create_task(case.ask())
    await asyncio.sleep(0.2)
    generate([*case.engine.output_processor.request_states.values()], 1)
    case.engine.let_go()
    await asking
    (use,) = case.used()
    assert (use["prompt_tokens"], use["completion_tokens"]) == (5, 4)


def _then(receive: Receive, never: Any) -> Receive:
    """The body, and then nothing for ever."""
    given = []

    async def once() -> Message:
        if given:
            await never()
        given.append(True)
        return await receive()

    return once


async def test_while_the_ledger_is_away_requests_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(tmp_path, tokens_per_minute=5, requests_per_minute=1)

    async def away(*_: Any) -> None:
        raise LedgerUnavailable("Quotas are counted at redis://h: no answer")

    for name in ("admit", "reserve", "settle"):
        monkeypatch.setattr(case.ledger, name, away)
    monkeypatch.setattr(module, "_LOST", module._Lost())
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    with caplog.at_level(logging.ERROR, "ray.serve"):
        for _ in range(3):
            assert (await case.ask()).status == 200
    # Ray's own set-up of this logger may hand each record over twice.
    records = dict.fromkeys(caplog.records)
    assert [one.getMessage() for one in records] == [
        "quotas are not counted: Quotas are counted at redis://h: no answer"
    ]
    assert len(case.used()) == 3


async def test_websockets(case: Case) -> None:
    refused = await case.ask(None, "/v1/realtime", type="websocket")
    assert refused.sent == [{"type": "websocket.close", "code": 1008}]
    assert (await case.ask("ann", "/sleep", type="websocket")).sent == refused.sent
    assert not case.app.called
    allowed = await case.ask("ann", "/v1/realtime", type="websocket")
    assert allowed.sent == [{"type": "websocket.accept"}]


async def test_our_own_requests_need_no_key(case: Case) -> None:
    assert await post(case.middleware, CHAT, b"{}") == (200, b"done")
    assert case.app.account is None
    assert case.used() == []


async def test_a_get_is_not_counted(tmp_path: Path) -> None:
    case = Case(tmp_path, requests_per_minute=1)
    for _ in range(3):
        assert (await case.ask(path="/v1/models", method="GET")).status == 200
    assert await case.left(requests_per_minute=1) == (1, None)


async def test_without_keys_everyone_may_and_is_recorded(case: Case) -> None:
    case.access.keys = case.access.ledger = None
    assert (await case.ask(None, "/sleep")).status == 200
    (use,) = case.used()
    assert (use["key"], use["completion_tokens"]) == (None, 3)
    assert case.app.account is not None
    assert case.app.account.priority is None  # the client's own stays


# The engine.


async def refuse(tokens: int) -> Refusal | None:
    return Refusal("tokens", f"not {tokens}", 1.0)


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    keep_accounts(made)
    return made


async def test_without_an_account_nothing_changes(engine: Engine) -> None:
    params = Params(max_tokens=99)
    await engine.add_request("r", {"prompt_token_ids": [1]}, params, priority=3)
    assert engine.given == [{"prompt": {"prompt_token_ids": [1]}, "params": params, "priority": 3}]
    assert params.max_tokens == 99


async def test_prompts_of_all_forms_are_counted(engine: Engine) -> None:
    asked = []

    async def reserve(tokens: int) -> None:
        asked.append(tokens)

    one = Account(reserve=reserve)
    token = ACCOUNT.set(one)
    try:
        request = SimpleNamespace(prompt_token_ids=[1] * 4, sampling_params=None)
        embeds = {"prompt_embeds": [[0.0]] * 6}
        for prompt in ({"prompt_token_ids": [1] * 3}, request, embeds, "text"):
            generate(await engine.add_request("r", prompt, Params(max_tokens=10, n=2)), 1)
        await engine.add_request("r", {"prompt_token_ids": [1] * 9}, Params(max_tokens=None))
    finally:
        ACCOUNT.reset(token)
    assert asked == [23, 24, 26, 20, 9]
    assert one.prompt_tokens() == 13  # the last was never computed
    assert one.completion_tokens() == 8


async def test_concurrent_prompts_keep_their_sequences_apart(engine: Engine) -> None:
    one, two = Account(), Account()

    async def ask(account: Account, tokens: int, n: int) -> None:
        ACCOUNT.set(account)
        prompt = {"prompt_token_ids": [1] * tokens}
        states = await asyncio.gather(
            *(engine.add_request(str(i), prompt, Params(n=n)) for i in range(3))
        )
        for each in states:
            generate(each, 2)

    await asyncio.gather(asyncio.create_task(ask(one, 5, 2)), asyncio.create_task(ask(two, 7, 1)))
    assert (one.prompt_tokens(), one.completion_tokens()) == (15, 12)
    assert (two.prompt_tokens(), two.completion_tokens()) == (21, 6)
    assert [len(prompt.sequences) for prompt in one.prompts] == [2, 2, 2]


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (50, 8), (None, None)])
async def test_max_tokens_has_a_ceiling(
    engine: Engine, asked: int | None, given: int | None
) -> None:
    token = ACCOUNT.set(Account(max_tokens=8))
    try:
        params, own = Params(asked), Params(asked)
        request = SimpleNamespace(prompt_token_ids=[1], sampling_params=own)
        await engine.add_request("r", request, params)
    finally:
        ACCOUNT.reset(token)
    assert (params.max_tokens, own.max_tokens) == (given, given)


@pytest.mark.parametrize(("policy", "own"), [("priority", 7), ("fcfs", 3)])
async def test_priority_needs_the_policy(policy: str, own: int) -> None:
    engine = Engine(policy)
    keep_accounts(engine)
    token = ACCOUNT.set(Account(priority=7))
    try:
        request = SimpleNamespace(prompt_token_ids=[1], priority=3)
        await engine.add_request("r", request, Params(), priority=3)
    finally:
        ACCOUNT.reset(token)
    assert engine.given[0]["priority"] == own
    assert request.priority == own


async def test_an_adapter_is_named(engine: Engine) -> None:
    one = Account()
    token = ACCOUNT.set(one)
    try:
        lora = SimpleNamespace(lora_name="sql")
        await engine.add_request("r", {"prompt_token_ids": [1]}, Params(), lora_request=lora)
    finally:
        ACCOUNT.reset(token)
    assert one.adapter == "sql"


async def test_once_refused_always_refused(engine: Engine) -> None:
    one = Account(reserve=refuse)
    token = ACCOUNT.set(one)
    try:
        for _ in range(2):
            with pytest.raises(Refused, match="not 11"):
                await engine.add_request("r", {"prompt_token_ids": [1]}, Params())
    finally:
        ACCOUNT.reset(token)
    assert engine.given == []
    assert (one.prompts, one.prompt_tokens()) == ([], 0)


def test_a_refusal_is_no_fault_in_the_log() -> None:
    handler = logging.NullHandler()
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    try:
        keep_accounts(Engine())
    finally:
        logger.removeHandler(handler)

    def passes(error: BaseException | None) -> bool:
        info = (type(error), error, None) if error else None
        return bool(handler.filter(logging.LogRecord("vllm", 40, "f", 1, "m", (), info)))

    def chained(cause: BaseException) -> BaseException:
        try:
            try:
                raise cause
            except type(cause):
                raise RuntimeError("stream") from cause
        except RuntimeError:
            found = sys.exc_info()[1]
            assert found
            return found

    assert passes(None)
    assert passes(ValueError("x"))
    assert passes(chained(ValueError("x")))
    assert not passes(Refused("x"))
    assert not passes(chained(Refused("x")))
