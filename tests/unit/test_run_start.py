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
        "for [0.0.0.0:52365] -> `neuron-serve doctor` says who holds the port; "
        "a HAProxy left over from an older Ray is usual: end it"
    )


def test_a_line_with_its_own_mend_stays() -> None:
    line = "cannot bind socket (Address already in use) for [0.0.0.0:1] -> choose another port"
    assert one_line([f"ConfigError: {line}"]) == line


def test_an_unknown_line_stays() -> None:
    assert (
        one_line(["ValueError: nobody has seen this one"]) == "ValueError: nobody has seen this one"
    )


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < _free_port(port) < port + 100
