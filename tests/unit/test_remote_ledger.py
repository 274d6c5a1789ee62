"""The ledger over a socket: the same answers, and what happens when the other side goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from serve_app.access import remote
from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.quota import Quota
from serve_app.access.remote import Address, RemoteLedger, serve_ledger

pytestmark = pytest.mark.anyio
QUOTA = Quota(requests_per_minute=100, tokens_per_minute=1000, concurrent_requests=1000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def served(ledger: Ledger, secret: str = "s") -> AsyncIterator[Address]:
    server = await serve_ledger(ledger, "127.0.0.1", secret)
    host, port = server.sockets[0].getsockname()
    try:
        yield host, port, "s"
    finally:
        server.close()


@asynccontextmanager
async def remote_ledger(address: Address) -> AsyncIterator[RemoteLedger]:
    async def find() -> Address:
        return address

    far = RemoteLedger(find)
    try:
        yield far
    finally:
        await far.close()
        await asyncio.sleep(0.05)  # the other end closes, too


async def test_the_same_answers() -> None:
    ledger = Ledger("memory", lambda: 600.0)
    async with served(ledger) as address, remote_ledger(address) as far:
        admitted = await far.admit("k", QUOTA, "r")
        assert admitted.refusal is None
        assert admitted.standing.remaining_requests == 99
        reserved = await far.reserve("k", QUOTA, "r", 900)
        assert reserved.standing.remaining_tokens == 100
        refused = await far.reserve("k", QUOTA, "r2", 200)
        assert refused.refusal is not None
        assert refused.refusal.what == "tokens"
        await far.keep(["r"])
        await far.settle("k", QUOTA, "r", 50)
        near = await ledger.standing("k", QUOTA)
        assert near.remaining_tokens == 950


async def test_a_hundred_of_a_thousand_from_four_places() -> None:
    async with served(Ledger("memory")) as address:
        async with AsyncExitStack() as stack:
            places = [await stack.enter_async_context(remote_ledger(address)) for _ in range(4)]
            asked = [places[i % 4].admit("k", QUOTA, f"r{i}") for i in range(1000)]
            decisions = await asyncio.gather(*asked)
        assert sum(decision.refusal is None for decision in decisions) == 100


async def test_without_the_secret() -> None:
    async with served(Ledger("memory"), secret="another") as address, remote_ledger(address) as far:
        with pytest.raises(LedgerUnavailable, match="the connection ended"):
            await far.admit("k", QUOTA, "r")


async def test_the_other_side_goes_and_comes_back() -> None:
    places: list[Address] = []

    async def find() -> Address:
        return places[-1]

    far = RemoteLedger(find)
    async with served(Ledger("memory")) as address:
        places.append(address)
        await far.admit("k", QUOTA, "r")
        assert far._writer is not None
        far._writer.transport.abort()
        await asyncio.sleep(0.05)
    with pytest.raises(LedgerUnavailable):
        await far.admit("k", QUOTA, "r")
    async with served(Ledger("memory")) as address:
        places.append(address)
        assert (await far.admit("k", QUOTA, "r")).refusal is None
        await far.close()
        await asyncio.sleep(0.05)


async def test_no_answer_is_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with remote_ledger((*server.sockets[0].getsockname()[:2], "s")) as far:
        with pytest.raises(LedgerUnavailable):
            await far.admit("k", QUOTA, "r")
        assert not far._waiting
    server.close()
