"""The front door over real HTTP: uvicorn in front, an HTTP server behind, real clients."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from starlette.responses import JSONResponse

from serve_app.front_door import Decision, Directory, FrontDoor
from tests.unit.stand_in_upstream import DONE, Asked, Upstream, event, served, upstream
from tests.unit.test_directory import ready, starting

CHAT = "/v1/chat/completions"
MAX = 2**20
SECRET = {"authorization": "Bearer only-qwen"}
ROUTES = {"/": "front-door", "/llama": "llama", "/qwen": "qwen", "/slow": "slow"}
BODY = {"model": "llama", "messages": [{"role": "user", "content": "héllo 模型"}]}


class Door:
    """The front door, its directory, and who is behind it."""

    def __init__(self, behind: Upstream) -> None:
        self.behind = behind
        self.draw = 0.0
        self.gate: Callable[[Any], Decision] = by_key
        self.reset()
        self.app = FrontDoor(
            lambda: self.directory, behind.url, MAX, lambda scope: self.gate(scope), self.next_draw
        )
        self.url = ""
        self.http = httpx.Client()

    def reset(self) -> None:
        self.gate, self.draw = by_key, 0.0
        self.list(
            ready("llama", "llama", "org/llama.v1", "chat"),
            ready("qwen", "qwen", "chat"),
            starting("slow"),
        )
        self.behind.asked.clear()

    def list(self, *reports: Any, **more: Any) -> None:
        declared = more.get("declared", {"slow": ("slow",)})
        self.directory = Directory.build(ROUTES, reports, declared, more.get("weights", {}))

    def next_draw(self) -> float:
        return self.draw

    def post(self, body: Any = BODY, path: str = CHAT, **options: Any) -> httpx.Response:
        do = options.pop("do", None)
        headers = dict(options.pop("headers", {}))
        if do is not None:
            headers["x-do"] = json.dumps(do)
        raw = body if isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body)
        return self.http.post(self.url + path, content=raw, headers=headers, **options)

    @property
    def asked(self) -> Asked:
        (asked,) = self.behind.asked
        return asked


def by_key(scope: Any) -> Decision:
    key = dict(scope["headers"]).get(b"authorization")
    if key == b"Bearer wrong":
        return JSONResponse({"error": {"message": "no"}}, 401)

    class Key:
        def allows(self, model: str) -> bool:
            return key != b"Bearer only-qwen" or model == "qwen"

    return Key()


@pytest.fixture(scope="module")
def running() -> Iterator[Door]:
    with upstream() as behind:
        door = Door(behind)
        with served(door.app) as door.url, door.http:
            yield door


@pytest.fixture
def door(running: Door) -> Door:
    running.reset()
    return running


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, whose form is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert body["code"] == status
    assert ("retry-after" in answer.headers) == (status in (502, 503, 504))
    return body


# What passes through


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MAX - 200])
def test_bytes_pass_untouched(door: Door, size: int) -> None:
    text = random.Random(size).randbytes(size).hex()[:size]
    raw = b'{ "model" :\t"llama",  "x": "' + text.encode() + b'\\u00e9", "y": 1.0e+3 }\r\n '
    answer = door.post(raw, do={})
    assert (answer.status_code, answer.content) == (200, raw)
    assert door.asked.body == raw
    assert door.asked.header(b"content-length") == [str(len(raw)).encode()]


def test_binary_bytes_pass_both_ways(door: Door) -> None:
    raw = random.Random(1).randbytes(300_000)
    form = httpx.Request("POST", "http://x", data={"model": "llama"}, files={"file": raw})
    body = form.read()
    answer = door.post(
        body, "/v1/audio/transcriptions", headers={"content-type": form.headers["content-type"]}
    )
    assert door.asked.body == answer.content == body
    assert raw in body


def test_an_upload_in_chunks(door: Door) -> None:
    pieces = [b'{"model": "lla', b'ma", "x": "', b"y" * 200_000, b'"}']
    answer = door.post(iter(pieces))
    assert answer.content == b"".join(pieces)
    assert not door.asked.header(b"transfer-encoding")


def test_encodings_pass_as_they_are(door: Door) -> None:
    raw = json.dumps(BODY).encode("utf-16")
    assert door.post(raw).content == door.asked.body == raw


def test_a_compressed_answer_stays_compressed(door: Door) -> None:
    do = {"x-do": json.dumps({"headers": {"content-encoding": "gzip"}})}
    with door.http.stream("POST", door.url + CHAT, json=BODY, headers=do) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join(answer.iter_raw()) == door.asked.body


def test_the_path_and_the_query_pass_as_they_are(door: Door) -> None:
    path = "/v1/some%2Fthing/%41%7e%E6%A8%A1;x?a=%20b&c=d+e&%2B"
    with socket.create_connection(address(door)) as raw:
        head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 17\r\n\r\n"
        raw.sendall(head.encode() + b'{"model":"llama"}')
        assert raw.recv(12) == b"HTTP/1.1 200"
    assert door.asked.path == "/llama/v1/some%2Fthing/%41%7e%E6%A8%A1;x?a=%20b&c=d+e&%2B"


def address(door: Door) -> tuple[str, int]:
    url = httpx.URL(door.url)
    assert url.port is not None
    return url.host, url.port


def test_headers(door: Door) -> None:
    answer = door.post(
        headers={
            "authorization": "Bearer k",
            "x-request-id": "mine",
            "x-forwarded-for": "10.0.0.1, 10.0.0.2",
            "connection": "keep-alive, x-hop",
            "x-hop": "1",
            "te": "trailers",
            "x-utf8": "é".encode(),
            "cookie": "c=1",
            "accept-encoding": "identity",
        }
    )
    asked = door.asked
    assert asked.header(b"host") == [door.behind.url.removeprefix("http://").encode()]
    assert asked.header(b"authorization") == [b"Bearer k"]
    assert asked.header(b"x-request-id") == [b"mine"]
    assert asked.header(b"x-forwarded-for") == [b"10.0.0.1, 10.0.0.2"]
    assert asked.header(b"x-utf8") == ["é".encode()]
    assert asked.header(b"accept-encoding") == [b"identity"]
    assert asked.header(b"cookie") == [b"c=1"]
    for name in (b"x-hop", b"te", b"transfer-encoding", b"content-type"):
        assert not asked.header(name)
    assert answer.headers["x-kept"] == "kept"
    assert answer.headers["set-cookie"] == "a=1"
    assert len(answer.headers.get_list("date")) == 1
    assert answer.headers["content-length"] == str(len(door.asked.body))


def test_the_client_s_address_is_told(door: Door) -> None:
    door.post()
    assert door.asked.header(b"x-forwarded-for") == [b"127.0.0.1"]


def test_a_client_does_not_choose_its_address(door: Door) -> None:
    """The last one is what the front door, or uvicorn for it, has seen itself."""
    door.post(headers={"x-forwarded-for": "10.0.0.1, 127.0.0.1"})
    assert door.asked.header(b"x-forwarded-for") == [b"10.0.0.1, 127.0.0.1, 10.0.0.1"]


def test_no_cookie_of_one_client_reaches_another(door: Door) -> None:
    door.post()
    door.http.cookies.clear()
    door.post()
    assert not door.behind.asked[1].header(b"cookie")


def test_a_request_id_is_made(door: Door) -> None:
    for _ in range(2):
        door.post()
    ids = [asked.header(b"x-request-id") for asked in door.behind.asked]
    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_errors_of_the_engine_pass(door: Door) -> None:
    body = '{"error": {"message": "too long", "code": 400}}'
    answer = door.post(
        do={"text": body, "answer": {"status": 400, "content_type": "application/json"}}
    )
    assert (answer.status_code, answer.text) == (400, body)


# Streams


def stream_pace(door: Door, events: int, pace_s: float) -> list[tuple[float, bytes]]:
    do = {"x-do": json.dumps({"events": events, "pace_s": pace_s})}
    with door.http.stream("POST", door.url + CHAT, json=BODY, headers=do) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [(time.monotonic(), chunk) for chunk in answer.iter_raw()]


def test_a_stream_arrives_as_it_is_made(door: Door) -> None:
    chunks = stream_pace(door, 10, 0.05)
    assert b"".join(chunk for _, chunk in chunks) == b"".join(map(event, range(10))) + DONE
    assert len(chunks) >= 10
    assert chunks[-1][0] - chunks[0][0] > 0.3


def test_a_hundred_streams_at_once(door: Door) -> None:
    async def one(client: httpx.AsyncClient) -> bytes:
        do = {"x-do": json.dumps({"events": 50, "pace_s": 0.01})}
        answer = await client.post(door.url + CHAT, json=BODY, headers=do, timeout=60)
        return answer.content

    async def all_at_once() -> list[bytes]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits) as client:
            return await asyncio.gather(*(one(client) for _ in range(100)))

    expected = b"".join(map(event, range(50))) + DONE
    assert asyncio.run(all_at_once()) == [expected] * 100


@pytest.mark.parametrize("part", ["", 'data: {"cut', "data: {}\n", "data: [DONE]"])
def test_a_stream_that_breaks_off_ends_with_an_error(door: Door, part: str) -> None:
    answer = door.post(do={"events": 9, "abort_after": 3, "part": part})
    assert answer.status_code == 200
    *events, last, rest = answer.text.split("\n\n")
    assert [f"{each}\n\n".encode() for each in events] == list(map(event, range(3)))
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 502
    assert rest == ""
    assert "DONE" not in answer.text


def test_the_openai_client_sees_that_it_broke_off(door: Door) -> None:
    client = openai.OpenAI(base_url=f"{door.url}/v1", api_key="k", max_retries=0)
    do = {"x-do": json.dumps({"events": 9, "abort_after": 3})}
    with client:
        stream = client.chat.completions.create(
            model="llama", messages=[], stream=True, extra_headers=do
        )
        seen = [next(stream) for _ in range(3)]
        assert [each.choices[0].delta.content for each in seen] == ["     0", "     1", "     2"]
        with pytest.raises(openai.APIError, match="broke off"):
            next(stream)


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_an_answer_that_breaks_off_is_cut(door: Door, how: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        door.post(do={"half": how})


# Clients that leave


def wait_until_left(asked: Asked, since: float) -> float:
    while asked.left_at is None:
        assert time.monotonic() - since < 5
        time.sleep(0.01)
    return asked.left_at - since


def test_who_leaves_a_stream_frees_the_engine(door: Door) -> None:
    do = {"x-do": json.dumps({"events": 500, "pace_s": 0.02})}
    with door.http.stream("POST", door.url + CHAT, json=BODY, headers=do) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        assert door.asked.left_at is None
    assert wait_until_left(door.asked, time.monotonic()) < 1.0


def test_who_leaves_before_the_first_byte_frees_the_engine(door: Door) -> None:
    begin = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        door.post(do={"hang": True}, timeout=0.3)
    assert wait_until_left(door.asked, begin) < 1.3


def test_who_leaves_in_his_own_upload_is_forgotten(door: Door) -> None:
    with socket.create_connection(address(door)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 99\r\n\r\n{")
    assert door.post().status_code == 200
    assert len(door.behind.asked) == 1


# Which model


@pytest.mark.parametrize(
    ("name", "prefix"), [("llama", "/llama"), ("org/llama.v1", "/llama"), ("qwen", "/qwen")]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/tokenize", "/v2/rerank", "/v1/new"])
def test_the_model_chooses(door: Door, name: str, prefix: str, path: str) -> None:
    assert door.post({"model": name}, path).status_code == 200
    assert door.asked.path == prefix + path


@pytest.mark.parametrize(("draw", "prefix"), [(0.0, "/llama"), (0.89, "/llama"), (0.91, "/qwen")])
def test_a_canary(door: Door, draw: float, prefix: str) -> None:
    shares = {"chat": {"llama": 0.9, "qwen": 0.1}}
    door.list(ready("llama", "chat"), ready("qwen", "chat"), weights=shares)
    door.draw = draw
    door.post({"model": "chat"})
    assert door.asked.path == prefix + CHAT


def test_of_duplicate_keys_the_last_counts(door: Door) -> None:
    raw = b'{"model": "slow", "x": {"model": "no"}, "model": "llama", "model": "qwen"}'
    assert door.post(raw).content == raw
    assert door.asked.path == f"/qwen{CHAT}"


def test_an_escaped_name(door: Door) -> None:
    door.post(b'{"\\u006dodel": "\\u0071wen"}')
    assert door.asked.path == f"/qwen{CHAT}"


@pytest.mark.parametrize(
    "name",
    [
        "../qwen",
        "/llama/../qwen",
        "%2e%2e/qwen",
        "qwen/v1",
        "QWEN",
        "llama\x00",
        "\ud800",
        "x" * 9999,
    ],
)
def test_an_unknown_model(door: Door, name: str) -> None:
    body = error(door.post({"model": name}), 404)
    assert (body["type"], body["param"]) == ("NotFoundError", "model")
    shown = name if len(name) < 100 else "x" * 200 + "..."
    assert body["message"] == (
        f"The model `{shown}` does not exist. Models: chat, llama, org/llama.v1, qwen, slow."
    )
    assert not door.behind.asked


def test_a_loading_model(door: Door) -> None:
    body = error(door.post({"model": "slow"}), 503)
    assert body["type"] == "ServiceUnavailableError"
    assert body["message"] == "The model slow is loading: phase weights, 42 s, 1.2 of 15 GiB."


def test_a_silent_model(door: Door) -> None:
    door.list(ready("slow", "slow", age_s=20.0))
    message = error(door.post({"model": "slow"}), 503)["message"]
    assert message == "The model slow is not responding: its last report is 20 s old."


@pytest.mark.parametrize(
    "raw", [b"", b"no", b"[1]", b'"x"', b"\xff\x00", b"[" * 100_000, b'{"model": 1' + b"0" * 5000]
)
def test_no_json_object(door: Door, raw: bytes) -> None:
    assert error(door.post(raw), 400)["type"] == "BadRequestError"


@pytest.mark.parametrize("model", [1, 0, True, ["llama"], {"model": "llama"}])
def test_a_model_is_a_text(door: Door, model: Any) -> None:
    assert error(door.post({"model": model}), 400)["param"] == "model"


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}])
def test_without_a_model(door: Door, body: dict[str, Any]) -> None:
    assert "Models: chat, llama" in error(door.post(body), 400)["message"]
    door.list(ready("llama", "llama", "alias"), declared={})
    assert door.post(body).json() == body
    assert door.asked.path == f"/llama{CHAT}"


def form(*fields: tuple[str, Any], **more: Any) -> tuple[bytes, dict[str, str]]:
    files = [(name, each if isinstance(each, tuple) else (None, each)) for name, each in fields]
    request = httpx.Request("POST", "http://x", files=files, **more)
    return request.read(), {"content-type": request.headers["content-type"]}


def test_the_model_of_a_form(door: Door) -> None:
    inner = b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nllama\r\n'
    audio = ("file", ("a.wav", inner + bytes(70_000), "audio/wav"))
    for fields in (
        [audio, ("model", "qwen")],
        [("model", "qwen"), audio],
        [("model", "llama"), audio, ("Model", "llama"), ("model", "qwen")],
    ):
        door.behind.asked.clear()
        body, headers = form(*fields)
        answer = door.post(body, "/v1/audio/transcriptions", headers=headers)
        assert (answer.content, door.asked.path) == (body, "/qwen/v1/audio/transcriptions")


def test_forms_that_are_none(door: Door) -> None:
    file = form(("model", ("llama", b"llama")))
    nameless = b"--b\r\nContent-Disposition: form-data\r\n\r\nllama\r\n--b--\r\n"
    kind = "multipart/form-data"
    for body, headers in (
        file,
        (b"no form", {"content-type": f"{kind}; boundary=b"}),
        (file[0], {"content-type": kind}),
        (file[0], {"content-type": f"{kind}; boundary={'b' * 999}"}),
        (nameless, {"content-type": f"{kind}; boundary=b"}),
        form(("other", "x")),
    ):
        error(door.post(body, "/v1/audio/transcriptions", headers=headers), 400)
    assert not door.behind.asked


def test_the_openai_client_transcribes(door: Door) -> None:
    do = {"text": '{"text": "hello"}', "answer": {"content_type": "application/json"}}
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="k") as client:
        client = client.with_options(default_headers={"x-do": json.dumps(do)})
        file = ("a.wav", io.BytesIO(bytes(100)))
        assert client.audio.transcriptions.create(model="qwen", file=file).text == "hello"
    assert door.asked.path == "/qwen/v1/audio/transcriptions"


# Limits


def test_a_body_that_is_too_large(door: Door) -> None:
    answer = door.post(b'{"model": "llama", "x": "' + b"y" * MAX + b'"}')
    assert str(MAX) in error(answer, 413)["message"]
    assert door.post().status_code == 200
    assert len(door.behind.asked) == 1


def test_a_body_that_says_it_is_too_large_is_not_read(door: Door) -> None:
    with socket.create_connection(address(door)) as raw:
        raw.settimeout(5)
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ncontent-length: {MAX + 1}\r\n\r\n".encode()
        )
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_a_chunked_body_is_not_read_beyond_the_limit(door: Door) -> None:
    with socket.create_connection(address(door)) as raw:
        raw.settimeout(5)
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        raw.sendall(b"%x\r\n" % (MAX + 1) + b"y" * (MAX + 1))
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_the_largest_body(door: Door) -> None:
    head = b'{"model": "llama", "x": "'
    raw = head + b"y" * (MAX - len(head) - 2) + b'"}'
    assert door.post(raw).content == raw


# Upstreams that fail


def test_one_that_refuses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        directory = Directory.build(ROUTES, [ready("llama", "llama")], {}, {})
        app = FrontDoor(lambda: directory, f"http://127.0.0.1:{port}", MAX)
        with served(app) as url:
            assert "cannot be reached" in error(httpx.post(url + CHAT, json=BODY), 503)["message"]


def test_one_that_dies_before_its_first_byte(door: Door) -> None:
    fresh = FrontDoor(lambda: door.directory, door.behind.url, MAX)
    do = {"x-do": json.dumps({"abort": "always"})}
    with served(fresh) as url:
        body = error(httpx.post(url + CHAT, json=BODY, headers=do), 502)
    assert body["type"] == "BadGatewayError"
    assert door.asked  # once: a request that kills an engine does not kill the next one


def test_one_that_dies_after_its_head(door: Door) -> None:
    error(door.post(do={"events": 1, "abort_after": 0}), 502)


def test_an_idle_connection_that_was_closed_is_not_the_client_s_problem(door: Door) -> None:
    door.post()
    answer = door.post(do={"abort": 2})
    assert answer.status_code == 200
    assert len(door.behind.asked) == 3


@pytest.mark.parametrize(
    ("status", "expected"), [(500, 503), (502, 502), (503, 503), (504, 504), (404, 503), (408, 408)]
)
def test_plain_text_becomes_openai_s_form(door: Door, status: int, expected: int) -> None:
    answer = door.post(do={"text": "Traceback: secret", "answer": {"status": status}})
    body = error(answer, expected)
    assert "secret" not in body["message"]


def test_backpressure_says_when(door: Door) -> None:
    again = {"status": 503, "headers": {"retry-after": "7"}}
    answer = door.post(do={"text": "Request dropped due to backpressure", "answer": again})
    error(answer, 503)
    assert answer.headers["retry-after"] == "7"


def test_a_text_that_is_an_answer_passes(door: Door) -> None:
    assert door.post(do={"text": "transcribed"}).text == "transcribed"


def test_a_broken_one_does_not_disturb_another(door: Door) -> None:
    with ThreadPoolExecutor(12) as threads:
        hung = [threads.submit(door.post, do={"hang": True}, timeout=1.5) for _ in range(4)]
        died = [threads.submit(door.post, do={"abort": "always"}) for _ in range(4)]
        good = [threads.submit(door.post, {"model": "qwen"}) for _ in range(4)]
        assert [each.result().status_code for each in good] == [200] * 4
        assert [each.result().status_code for each in died] == [502] * 4
        assert all(isinstance(each.exception(), httpx.ReadTimeout) for each in hung)


# Other routes, and keys


def test_models(door: Door) -> None:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="k") as client:
        assert [model.id for model in client.models.list()] == [
            "llama",
            "org/llama.v1",
            "chat",
            "qwen",
        ]
        assert client.models.retrieve("org/llama.v1").max_model_len == 128  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError, match="`slow` does not exist"):
            client.models.retrieve("slow")
    assert door.http.get(f"{door.url}/v1/models/org%2Fllama.v1").json()["id"] == "org/llama.v1"


def test_what_a_key_may_not_use_is_not_there(door: Door) -> None:
    get = door.http.get
    assert [m["id"] for m in get(f"{door.url}/v1/models", headers=SECRET).json()["data"]] == [
        "qwen"
    ]
    for name in ("llama", "slow", "nobody"):
        texts = [
            error(door.post({"model": name}, headers=SECRET), 404)["message"],
            error(get(f"{door.url}/v1/models/{name}", headers=SECRET), 404)["message"],
        ]
        assert texts == [f"The model `{name}` does not exist. Models: qwen."] * 2
    stored = error(get(f"{door.url}/v1/responses/resp_1", headers=SECRET), 404)["message"]
    assert stored.endswith(": /qwen/v1/responses/resp_1 (qwen).")
    door.list(ready("llama", "llama"))
    assert error(door.post({}, headers=SECRET), 400)["message"].endswith("There are no models.")
    assert not door.behind.asked
    door.reset()
    assert door.post({"model": "qwen"}, headers=SECRET).status_code == 200


def test_the_gate(door: Door) -> None:
    wrong = {"authorization": "Bearer wrong"}
    for method, path in [
        ("GET", "/v1/models"),
        ("POST", CHAT),
        ("GET", "/x"),
        ("DELETE", "/health"),
    ]:
        answer = door.http.request(method, door.url + path, headers=wrong)
        assert (answer.status_code, answer.json()) == (401, {"error": {"message": "no"}})
    for path in ("/health", "/ping", "/-/front-door/table"):
        assert door.http.get(door.url + path, headers=wrong).status_code == 200


def test_health_needs_no_engine(door: Door) -> None:
    door.list()
    assert door.http.get(f"{door.url}/health").status_code == 200
    assert door.http.post(f"{door.url}/ping").status_code == 200
    assert door.http.head(f"{door.url}/health").status_code == 200


def test_the_table(door: Door) -> None:
    answer = door.http.get(f"{door.url}/-/front-door/table")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == door.directory.table()
    assert len(answer.text.splitlines()) == 5


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_what_is_stored_in_a_replica(door: Door, method: str) -> None:
    path = "/v1/responses/resp_1/cancel"
    message = error(door.http.request(method, door.url + path), 404)["message"]
    assert f"/llama{path} (chat, llama, org/llama.v1), /qwen{path} (chat, qwen)" in message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("PUT", "/tokenize", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/llama", 405),
        ("POST", "/-/front-door/table", 405),
        ("GET", "/metrics", 404),
        ("POST", "/sleep", 404),
        ("POST", "/v1", 404),
        ("POST", "/llama/v1/completions", 404),
        ("POST", "/v1/%2e%2e/%2e%2e/qwen/v1/completions", 404),
        ("POST", "/v1/%2e/completions", 404),
    ],
)
def test_other_routes(door: Door, method: str, path: str, status: int) -> None:
    answer = door.http.request(method, door.url + path)
    error(answer, status)
    assert ("allow" in answer.headers) == (status == 405)
    assert not door.behind.asked
