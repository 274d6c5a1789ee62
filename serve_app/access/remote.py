"""The ledger of another process, over a socket.

An actor call of Ray's costs each side 2 ms of CPU, a line here less than 0.1. Requests and answers
are lines of JSON, with a number by which they find each other; the first line is a secret that the
client has from Ray.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from typing import Any

from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.quota import Decision, Quota, Refusal, Standing

Address = tuple[str, int, str]
"""Host, port and secret."""
_TIMEOUT_S = 10.0
"""Long: a burst of a thousand waits in line, and what is not counted passes."""
_LINE = 2**20
"""Bytes of a line at the most; `keep` tells of some 30,000 requests in one."""


async def serve_ledger(ledger: Ledger, host: str, secret: str) -> asyncio.Server:
    """Answer RemoteLedgers that know the secret, on a free port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way: set[asyncio.Task[None]] = set()
        with suppress(OSError, ValueError, asyncio.IncompleteReadError):
            if hmac.compare_digest(await reader.readuntil(), f"{secret}\n".encode()):
                async for line in reader:
                    task = asyncio.create_task(_answer(ledger, line, writer))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    return await asyncio.start_server(serve, host, 0, limit=_LINE)


async def _answer(ledger: Ledger, line: bytes, writer: asyncio.StreamWriter) -> None:
    number, method, key, quota, *rest = json.loads(line)
    result: Any = None
    try:
        if method == "keep":
            await ledger.keep(rest[0])
        elif method == "settle":
            await ledger.settle(key, Quota(*quota), *rest)
        elif method == "admit":
            result = asdict(await ledger.admit(key, Quota(*quota), *rest))
        elif method == "reserve":
            result = asdict(await ledger.reserve(key, Quota(*quota), *rest))
        answer = [number, result, None]
    except LedgerUnavailable as error:
        answer = [number, None, str(error)]
    writer.write(json.dumps(answer).encode() + b"\n")


class RemoteLedger:
    """A ledger as if it were in this process; `find` says where it is.

    Methods raise LedgerUnavailable, within some seconds; the next call looks for it anew.
    """

    def __init__(self, find: Callable[[], Awaitable[Address]]) -> None:
        self._find = find
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def admit(self, key: str, quota: Quota, request: str) -> Decision:
        return _decision(await self._ask("admit", key, quota, request))

    async def reserve(self, key: str, quota: Quota, request: str, tokens: int) -> Decision:
        return _decision(await self._ask("reserve", key, quota, request, tokens))

    async def settle(self, key: str, quota: Quota, request: str, used: int) -> None:
        await self._ask("settle", key, quota, request, used)

    async def keep(self, requests: Iterable[str]) -> None:
        await self._ask("keep", "", Quota(), list(requests))

    async def close(self) -> None:
        """Close the connection; who waits for an answer is told."""
        if self._writer is not None and self._reading is not None:
            self._writer.close()
            await self._reading

    async def _ask(self, method: str, key: str, quota: Quota, *rest: Any) -> Any:
        limits = (quota.requests_per_minute, quota.tokens_per_minute, quota.concurrent_requests)
        try:
            writer = self._writer or await self._connect()
            number = next(self._numbers)
            waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                line = json.dumps([number, method, key, limits, *rest])
                writer.write(line.encode() + b"\n")
                async with asyncio.timeout(_TIMEOUT_S):
                    result, error = await waiting
            finally:
                del self._waiting[number]
        except (OSError, TimeoutError) as failure:
            raise LedgerUnavailable(f"the counts do not answer: {failure}") from None
        if error is not None:
            raise LedgerUnavailable(error)
        return result

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                async with asyncio.timeout(_TIMEOUT_S):
                    host, port, secret = await self._find()
                    reader, writer = await asyncio.open_connection(host, port, limit=_LINE)
                writer.write(f"{secret}\n".encode())
                self._writer = writer
                self._reading = asyncio.create_task(self._read(reader, writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            async for line in reader:
                number, result, error = json.loads(line)
                waiting = self._waiting.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result((result, error))
        self._writer = None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the connection ended"))


def _decision(data: Any) -> Decision:
    refusal = data["refusal"]
    return Decision(Refusal(**refusal) if refusal else None, Standing(**data["standing"]))
