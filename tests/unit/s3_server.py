"""A real S3 server on loopback (moto's), which can be told to misbehave on the wire."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Environ = dict[str, Any]
Fault = Callable[[Environ], tuple[str, bytes] | None]
"""Looks at a request and gives the answer to send instead of the server's, or None."""

# Of the clients that set the stage: they are not under test.
OWN_CREDENTIALS = {
    "aws_access_key_id": "stage",
    "aws_secret_access_key": "stage",
    "region_name": "us-east-1",
}


def s3_error(status: str, code: str) -> tuple[str, bytes]:
    """An answer as S3 words it."""
    text = f"<Error><Code>{code}</Code><Message>token=SECRETTOKEN</Message></Error>"
    return status, b'<?xml version="1.0"?>' + text.encode()


def hang_up(environ: Environ) -> None:
    """The connection breaks instead of an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionError


class S3Server:
    """`url` is its endpoint; `fault` and `tamper` see every request and every answer."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self._s3 = create_backend_app("s3")
        self._others = DomainDispatcherApplication(
            create_backend_app
        )  # slow: looks for the right one
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.reset()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.fault: Fault = lambda environ: None
        self.tamper: Callable[[Environ, bytes], bytes] = lambda environ, body: body
        self.bytes_sent = 0
        """Of all answers to a GET of a part of an artifact's file."""
        self.counted_app = ""
        """Counts only what a client with this AWS_SDK_UA_APP_ID asked for."""
        self.requests: list[tuple[str, str]] = []
        """Method, and path with its query, of all that came."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.requests.append((environ["REQUEST_METHOD"], path))
        if answer := self.fault(environ):
            status, body = answer
            start_response(status, [("Content-Type", "application/xml")])
            return [body]
        return self._answer(environ, start_response)

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        other = environ["PATH_INFO"].startswith("/moto-api/")
        other |= "/iam/aws4_request" in environ.get("HTTP_AUTHORIZATION", "")
        body = b"".join((self._others if other else self._s3)(environ, start_response))
        own = environ["PATH_INFO"].endswith((".lock", "/neuron-serve.json"))
        counted = self.counted_app in environ.get("HTTP_USER_AGENT", "")
        if environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ and counted and not own:
            self.bytes_sent += len(body)
        yield self.tamper(environ, body)

    @cached_property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url, **OWN_CREDENTIALS)

    @cached_property
    def user_without_rights(self) -> dict[str, str]:
        """Credentials of a user who may do nothing, as environment variables."""
        iam = boto3.client("iam", endpoint_url=self.url, **OWN_CREDENTIALS)
        iam.create_user(UserName="nobody")
        key = iam.create_access_key(UserName="nobody")["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """The server asks IAM before each request; else it lets anyone do anything."""
        self._check_rights_after(0)
        try:
            yield
        finally:
            self._check_rights_after(float("inf"))

    def _check_rights_after(self, requests: float) -> None:
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth",
            data=str(requests).encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()
