"""Ports of the side channels of one node: a slot's own, or the next free ones; never shared."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serve_app.engine import side_channel
from serve_app.engine.errors import StartupError
from serve_app.engine.side_channel import HOST, PORT, claim_side_channel

LOCALHOST = "127.0.0.1"
CLAIM = f"""
import os, sys
from serve_app.engine.side_channel import claim_side_channel
environment = {{}}
claim_side_channel(environment, "{LOCALHOST}", *map(int, sys.argv[1:]))
print(environment["{PORT}"], flush=True)
sys.stdin.read()
"""

Other = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Locks in a folder of the test's own, and let go when it ends."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(side_channel, "_held", [])
    yield tmp_path
    for descriptor in side_channel._held:
        os.close(descriptor)


@pytest.fixture
def first() -> int:
    """The first of 8 ports that nobody listens on."""
    for port in range(23_000 + os.getpid() % 5000, 40_000, 8):
        with ExitStack() as stack:
            try:
                for extra in range(8):
                    stack.enter_context(listen(port + extra))
            except OSError:
                continue
        return port
    raise AssertionError("no free ports")


@contextmanager
def listen(port: int) -> Iterator[None]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOCALHOST, port))
        server.listen()
        yield


@pytest.fixture
def other() -> Iterator[Other]:
    """Another process that claims, and stays."""
    with ExitStack() as stack:

        def start(*arguments: int) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", CLAIM, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.enter_context(process.stdin)
            stack.enter_context(process.stdout)
            return process

        yield start


def claim(first: int, slot: int, slots: int = 4, ports: int = 1) -> int:
    environment: dict[str, str] = {}
    claim_side_channel(environment, LOCALHOST, first, slot, slots, ports)
    assert environment[HOST] == LOCALHOST
    return int(environment[PORT])


def test_each_slot_has_its_ports(first: int) -> None:
    assert [claim(first, slot) for slot in range(4)] == [first, first + 1, first + 2, first + 3]


def test_an_engine_of_several_ranks_has_as_many_ports(first: int) -> None:
    assert [claim(first, slot, ports=2) - first for slot in range(4)] == [0, 2, 4, 6]


def test_a_slot_that_another_process_holds(first: int, other: Other) -> None:
    process = other(first, 1, 4, 1)
    assert int(process.stdout.readline()) == first + 1
    assert claim(first, 1) == first + 2
    assert claim(first, 0) == first


def test_the_last_slots_next_is_the_first(first: int, other: Other) -> None:
    other(first, 3, 4, 1).stdout.readline()
    assert claim(first, 3) == first


def test_a_replica_killed_outright_leaves_its_slot(first: int, other: Other) -> None:
    process = other(first, 1, 4, 1)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert claim(first, 1) == first + 1


def test_a_port_that_somebody_listens_on(first: int) -> None:
    with listen(first + 1):
        assert claim(first, 1) == first + 2


def test_any_of_an_engines_ports(first: int) -> None:
    with listen(first + 3):
        assert claim(first, 1, ports=2) == first + 4


def test_a_port_passed_over_is_there_for_the_next_one(first: int, other: Other) -> None:
    """The lock of a port in use is not kept, or the port would be lost for this node."""
    with listen(first + 1):
        assert claim(first, 1) == first + 2
    process = other(first, 1, 4, 1)
    assert int(process.stdout.readline()) == first + 1


def test_all_taken_is_one_line(first: int, other: Other) -> None:
    other(first, 0, 2, 1).stdout.readline()
    with listen(first + 1), pytest.raises(StartupError) as error:
        claim(first, 0, slots=2)
    (line,) = str(error.value).splitlines()
    assert re.search(rf"{first} to {first + 1} of {LOCALHOST} .*prefill.transfer.port", line)


def test_what_the_user_sets_wins(first: int) -> None:
    environment = {PORT: "9999"}
    claim_side_channel(environment, LOCALHOST, first, 0, 4, 1)
    assert environment == {PORT: "9999", HOST: LOCALHOST}
    with listen(first):
        claim_side_channel(environment, LOCALHOST, first, 0, 1, 1)  # no port of ours is free
    environment = {HOST: "10.0.0.9"}
    claim_side_channel(environment, LOCALHOST, first, 1, 4, 1)
    assert environment == {PORT: str(first + 1), HOST: "10.0.0.9"}


def test_the_lock_is_not_for_the_engines_processes(first: int) -> None:
    """A child that outlives its replica must not hold the slot."""
    claim(first, 0)
    assert not any(os.get_inheritable(descriptor) for descriptor in side_channel._held)
