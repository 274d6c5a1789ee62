"""A Prometheus server of Debian's package, where there is one."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

_PLACES = f"{sys.prefix}/prometheus/usr/bin{os.pathsep}{os.environ.get('PATH', '')}"
"""scripts/test.sh unpacks the package there."""


def program(name: str) -> str:
    """The path of prometheus or promtool; without one the test is skipped."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        pytest.skip(f"{name} is not installed: apt install prometheus")
    return found


class Prometheus:
    """A running server."""

    def __init__(self, directory: Path, config: dict[str, Any], port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._http = httpx.Client(timeout=30)
        deadline = time.monotonic() + 30
        while not self._ready():
            assert self._process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.1)

    def values(self, expr: str) -> list[float]:
        """Of the samples that a query returns, but for NaN."""
        result = self.get("query", query=expr)["result"]
        values = [float(sample["value"][1]) for sample in result]
        return [value for value in values if not math.isnan(value)]

    def get(self, path: str, **parameters: str) -> Any:
        reply = self._http.get(f"{self._url}/{path}", params=parameters)
        assert reply.is_success, (parameters, reply.text)
        return reply.json()["data"]

    def close(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _ready(self) -> bool:
        try:
            return self._http.get(f"{self._url}/query", params={"query": "1"}).is_success
        except httpx.HTTPError:
            return False
