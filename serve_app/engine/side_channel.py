"""The TCP ports on which NIXL's connectors of one node tell each other where their memory is."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from serve_app.engine.errors import StartupError

HOST, PORT = "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"

_held: list[int] = []


def claim_side_channel(
    environment: MutableMapping[str, str], host: str, first: int, slot: int, slots: int, ports: int
) -> None:
    """Set host and port of this engine's side channel in `environment`; kept while it lives.

    Each of `slots` engines of a node has `ports` ports from `first` on. This one takes those of
    its `slot`, the same after a restart, or the next free ones.

    Raises:
        StartupError: all are taken.
    """
    environment.setdefault(HOST, host)
    if PORT in environment:
        return
    for turn in range(slots):
        port = first + (slot + turn) % slots * ports
        lock = _claim(port)
        if lock is None:
            continue
        if all(_free(host, port + extra) for extra in range(ports)):
            _held.append(lock)
            environment[PORT] = str(port)
            return
        os.close(lock)
    raise StartupError(
        f"the ports {first} to {first + slots * ports - 1} of {host} are taken "
        "-> set prefill.transfer.port"
    )


def _claim(port: int) -> int | None:
    """vLLM opens the port only minutes later, so a lock holds it until this process ends.

    Returns the lock's file descriptor; None when another process has it.
    """
    path = Path(tempfile.gettempdir(), f"neuron-serve-side-channel-{os.getuid()}-{port}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
