"""Stores to test with: a directory, S3 over HTTP, and fsspec's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.unit.s3_server import S3Server

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIASECRETACCESS",
    "AWS_SECRET_ACCESS_KEY": "SECRETSECRETSECRET",
    "AWS_SESSION_TOKEN": "SECRETTOKEN",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    from tests.unit.s3_server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with this process's environment set for it."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_process.url)
    yield s3_process
    s3_process.reset()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The url of a store in a bucket of its own."""
    name = f"b-{uuid4().hex[:8]}"
    s3.client.create_bucket(Bucket=name)
    return f"s3://{name}/some/prefix"


@pytest.fixture(params=["directory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that other processes can reach."""
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    return str(tmp_path / "store")


@pytest.fixture
def own_environment() -> Iterator[None]:
    """What a test does to this process's environment ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio."""
    return "asyncio"
