"""Download of weights, from a small hub of our own on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 3_000_000,
    "pytorch_model.bin": b"old",
    "original/consolidated.00.pth": b"old",
}
CODE = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
import serve_app.engine.weights as weights
from serve_app.engine.errors import StartupError
from serve_app.engine.phases import Phases
weights._REPORT_PERIOD_S = 0.0
try:
    print(weights.fetch(sys.argv[1], sys.argv[2] or None, "model.source", Phases()))
except StartupError as error:
    sys.exit(f"startup: {error}")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if "org/gated" in path:
            return self.send(b"", 403, {"X-Error-Code": "GatedRepo"})
        if "org/model" not in path:
            return self.send(b"", 401, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/none") or "/none/" in path:
            return self.send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                for name, data in FILES.items()
            ]
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "org/model", "sha": COMMIT, "siblings": siblings}
            body: object = tree if "/tree/" in path else info
            return self.send(json.dumps(body).encode(), 200, {"Content-Type": "application/json"})
        name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
        if name not in FILES:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{digest(FILES[name])}"', "X-Repo-Commit": COMMIT}
        return self.send(FILES[name], 200, headers)

    def send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetch(
    hub: str, home: Path, source: str, revision: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", CODE, source, revision]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_download_with_progress_and_without_what_nobody_reads(hub: str, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path, "org/model")
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip().splitlines()[-1])
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors"}
    assert "phase=download" in done.stderr
    assert "of 0.00 GiB" in done.stderr  # 3 MB
    # The hub gone: the cache serves.
    assert fetch("http://127.0.0.1:9", tmp_path, "org/model").stdout == done.stdout


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("org/gated", "", "org/gated is gated -> accept its licence on the hub and set HF_TOKEN"),
        ("org/none", "", "the hub has no model 'org/none', or it is private"),
        ("org/model", "none", "org/model has no revision 'none' -> mend model.source"),
    ],
)
def test_one_line_for_what_the_hub_refuses(hub, tmp_path, source, revision, said) -> None:
    done = fetch(hub, tmp_path, source, revision)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("startup: ")]
    assert said in line


def test_no_hub_and_no_cache(tmp_path: Path) -> None:
    done = fetch("http://127.0.0.1:9", tmp_path, "org/model")
    assert done.returncode == 1
    assert "startup: cannot reach the hub and org/model is not in the local cache" in done.stderr
