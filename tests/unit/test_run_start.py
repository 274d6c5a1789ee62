"""What `neuron-serve run` says and chooses before anything is served."""

from __future__ import annotations

import socket

from serve_app.cli.dashboard import one_line
from serve_app.cli.run import _free_port

CRASH = """Traceback (most recent call last):
RuntimeError: HAProxy crashed during startup: [NOTICE]   (8674) : haproxy version is 2.8.25
[WARNING]  (8674) : config : log format ignored for frontend 'prometheus'.
[ALERT]    (8674) : Binding [haproxy.cfg:114] for proxy stats: cannot bind socket (Address already \
in use) for [0.0.0.0:52365]
[ALERT]    (8674) : Some protocols failed to start their listeners! Exiting.
"""


def test_why_haproxy_did_not_start() -> None:
    said = one_line([CRASH])
    assert said == (
        "Binding [haproxy.cfg:114] for proxy stats: cannot bind socket (Address already in use) "
        "for [0.0.0.0:52365]"
    )


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < _free_port(port) < port + 100
