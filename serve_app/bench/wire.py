"""HTTP/1.1 for a load generator: bytes and the times at which they came, read later.

Under load a token costs one callback: its time is noted, httptools takes the HTTP framing off,
and the bytes are kept. JSON is parsed when the stream has ended (`serve_app.bench.answers`).
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools

SILENCE_S = 180.0
"""A request that gets no byte for so long is given up, as LLMPerf's client does."""
_IDLE_S = 1.0
"""A connection that was idle longer is not used again: the server may be closing it."""
_SPARE_FILES = 64


@dataclass(slots=True)
class Exchange:
    """A request and what came back; times are those of `time.perf_counter`."""

    started: float
    status: int = 0
    times: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    """Parts of the body, each with its time in `times`."""
    ended: float = 0.0
    error: tuple[str, str] | None = None
    """(code, message) when no whole answer came: unreachable, cut-off, silent or not-http."""

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.exchange: Exchange | None = None
        self.at = perf_counter()
        self.framed = self.alive = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    async def send(self, data: bytes, exchange: Exchange) -> None:
        self.exchange, self.framed, self.at = exchange, False, perf_counter()
        self.over = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        try:
            await self.over
        finally:
            if self.exchange is not None:  # cancelled
                self.exchange = None
                self.close()

    def data_received(self, data: bytes) -> None:
        self.at = perf_counter()
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail("not-http", str(error) or type(error).__name__)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        if self.exchange is not None:
            self.exchange.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.times.append(self.at)
            exchange.pieces.append(body)

    def on_message_complete(self) -> None:
        if self.exchange is None or self.exchange.status < 200:  # unasked, or an interim answer
            return
        self.alive = self.parser.should_keep_alive()
        self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self.exchange is not None and self.exchange.status and not self.framed:
            self.finish()  # a body that ends with its connection
        else:
            what = "before an answer" if self.exchange and not self.exchange.status else "within it"
            self.fail("cut-off", f"the server closed the connection {what}")

    def fail(self, code: str, message: str) -> None:
        if self.exchange is not None:
            self.exchange.error = (code, message)
            self.finish()
        self.close()

    def finish(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.ended = self.at = perf_counter()
            if not self.over.done():
                self.over.set_result(None)

    def close(self) -> None:
        self.alive = False
        self.transport.abort()


class Client:
    """POSTs to one URL over as many connections as are needed, which are used again."""

    def __init__(self, url: str, key: str | None = None, silence_s: float = SILENCE_S) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"user-agent: neuron-serve-bench\r\naccept: text/event-stream\r\n{authorization}"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._silence_s = silence_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._streams = asyncio.Semaphore(max_streams())

    async def post(self, body: bytes) -> Exchange:
        """Never raises for what the network or the server does: the exchange says it."""
        exchange = Exchange(perf_counter())
        async with self._streams:
            try:
                connection = await asyncio.wait_for(self._connection(), self._silence_s)
            except (OSError, TimeoutError) as error:
                reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
                exchange.error = ("unreachable", f"{self._host}:{self._port}: {reason}")
                exchange.ended = perf_counter()
                return exchange
            self._busy.add(connection)
            try:
                await connection.send(b"%s%d\r\n\r\n%s" % (self._head, len(body), body), exchange)
            finally:
                self._busy.discard(connection)
            if connection.alive:
                self._idle.append(connection)
        return exchange

    async def watch(self) -> None:
        """Gives up on what is silent for too long; runs beside the requests."""
        while True:
            await asyncio.sleep(min(1.0, self._silence_s / 4))
            latest = perf_counter() - self._silence_s
            for connection in [one for one in self._busy if one.at < latest]:
                connection.fail("silent", f"no byte for {self._silence_s:g} s")

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        fresh = perf_counter() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and connection.at > fresh:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        return made


def max_streams() -> int:
    """Sockets that this process may have: its soft limit of open files, raised to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(1, min(soft, 2**20) - _SPARE_FILES)
