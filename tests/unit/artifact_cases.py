"""Artifacts to publish, other processes to publish them, and what they do there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from serve_app.artifacts.store import Store, StoreError, cache, open_store

KEY = "0a1b2c3d4e5f"
MANIFEST = "neuron-serve.json"
PACKAGE = str(Path(cache.__file__).parent)
FILES = {
    "neuron_config.json": b'{"tp_degree": 2}',
    "model.pt": random.Random(0).randbytes(300_000),
    "weights/tp0_sharded_checkpoint.safetensors": random.Random(1).randbytes(1_200_000),
    "weights/tp1_sharded_checkpoint.safetensors": random.Random(2).randbytes(400_000),
    "compiler/a name, with (signs) & ümlaut%20.txt": b"x",
    "compiler/empty": b"",
}
FEW = {path: FILES[path] for path in ("neuron_config.json", "model.pt", "compiler/empty")}
TOTAL = sum(map(len, FILES.values()))

# A process that is to be killed must not be a copy of this one: threads, locks, s3fs's loop.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["s3fs", __name__])


def make(directory: Path, files: dict[str, bytes] = FILES, **fields: Any) -> Path:
    """An artifact as a compile leaves it."""
    entries = {}
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
        entries[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / MANIFEST).write_text(json.dumps({"model": "tiny", "files": entries, **fields}))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of an artifact but its manifest."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if path.name != MANIFEST
    }


def verify(store: Store, cache_directory: Path, key: str = KEY) -> dict[str, bytes]:
    """Fetches the artifact, which checks every hash, and lets it go again."""
    found = store.find(key)
    assert found is not None
    directory = store.fetch(key, cache_directory)
    cache.release(directory)
    assert json.loads((directory / MANIFEST).read_text()) == found
    files = contents(directory)
    assert files.keys() == found["files"].keys()
    return files


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Runs `target` in a fresh process with the environment of now."""
    process = processes.Process(target=_run, args=(dict(os.environ), target, arguments))
    process.daemon = True
    process.start()
    return process


def finish(*running: BaseProcess, code: int = 0) -> None:
    for process in running:
        process.join(30)
        assert process.exitcode == code, process


def _run(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# What processes do.


def publish(url: str, source: Path) -> None:
    open_store(url).publish(KEY, source)


def publish_and_count(url: str, source: Path, counted: Path) -> None:
    """Publishes; writes how many lines of the package's code that took."""
    store = open_store(url)
    store.find(KEY)
    lines = _at_line(sys.maxsize)
    store.publish(KEY, source)
    counted.write_text(str(lines()))


def publish_and_die(url: str, source: Path, line: int, key: str) -> None:
    """Publishes, but is killed at the given line of the package's code."""
    store = open_store(url)
    store.find(KEY)  # connects: of no interest, and slow when traced
    _at_line(line)
    store.publish(key, source)


def publish_at(gate: Path, url: str, source: Path) -> None:
    """Publishes under the gate's name as soon as the gate opens."""
    store = open_store(url)
    store.find(gate.name)
    gate.with_suffix(".ready").touch()
    wait_for(gate.exists)
    store.publish(gate.name, source)


def _at_line(last: int) -> Callable[[], int]:
    """kill -9 at the `last` line that runs in the package; gives a counter of lines."""
    count = 0
    lock = threading.Lock()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            with lock:
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    return lambda: count


def fetch_and_die(url: str, cache_directory: Path, after: int) -> None:
    """Fetches, but is killed when `after` bytes have come."""

    def report(done: int, total: int, path: str) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    open_store(url).fetch(KEY, cache_directory, report=report)


def fetch(url: str, cache_directory: Path, key: str = KEY) -> None:
    open_store(url).fetch(key, cache_directory)


def fetch_slowly(url: str, cache_directory: Path, pause_s: float) -> None:
    open_store(url).fetch(KEY, cache_directory, report=lambda *step: time.sleep(pause_s))


def fetch_and_stay(url: str, cache_directory: Path, ready: Path, key: str) -> None:
    fetch(url, cache_directory, key)
    ready.touch()
    time.sleep(60)


def compile_if_mine(url: str, work: Path, ttl_s: float, compile_s: float) -> None:
    """What a replica does at its start; each would compile something different."""
    store = open_store(url)
    with store.claim(KEY, ttl_s=ttl_s) as mine:
        if mine:
            (work.parent / f"{work.name}.compiled").touch()
            time.sleep(compile_s)
            assert store.publish(KEY, make(work / "out", {"model.pt": work.name.encode() * 1000}))
    store.fetch(KEY, work / "cache")


def publish_own(url: str, work: Path, gate: Path) -> None:
    """Publishes something of its own as soon as the gate opens; notes whether it won."""
    source = make(work / "out", {"model.pt": work.name.encode() * 1000})
    store = open_store(url)
    store.find(KEY)
    (work / "ready").touch()
    wait_for(gate.exists)
    (work / "won").write_text(str(store.publish(KEY, source)))


def claim_and_stay(url: str, ready: Path, ttl_s: float) -> None:
    with open_store(url).claim(KEY, ttl_s=ttl_s) as mine:
        assert mine
        ready.touch()
        time.sleep(60)


def publish_with_small_files(url: str, source: Path, said: Path) -> None:
    """A full disk as any user can have it: no file may grow beyond 1 MB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    _note(said, lambda: publish(url, source))


def fetch_with_small_files(url: str, cache_directory: Path, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    _note(said, lambda: fetch(url, cache_directory))


def publish_as_nobody(url: str, source: Path, said: Path) -> None:
    """Publishes where this user may not write; root gives up being root first."""
    handle = said.open("w")
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        publish(url, source)
    except StoreError as error:
        handle.write(str(error))
    handle.close()


def _note(said: Path, work: Callable[[], None]) -> None:
    try:
        work()
    except StoreError as error:
        said.write_text(str(error))
