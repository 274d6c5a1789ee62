"""From the section `access` to what the middleware works with, and its housekeeping."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ray import serve

from serve_app.access.key_file import KeyFile
from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.usage import UsageLog
from serve_app.config import Access as Section
from serve_app.config import ConfigError, Finding, Severity
from serve_app.config.environment import expand
from serve_app.deployments.hub import hub_ledger
from serve_app.ingress.access import Access

logger = logging.getLogger("ray.serve")

_FLUSH_S = 1.0
_RENEW_S = 10.0


def open_access(
    section: Section, models: Callable[[], Iterable[str]], policy: object = None
) -> Access | None:
    """None where everyone may ask and nothing is recorded. `policy`: engine.scheduling_policy.

    Raises:
        ConfigError: the key file cannot be used, or a variable is unset.
    """
    context = serve.get_replica_context()
    if section.keys is None and section.usage is None:
        return None
    keys = usage = ledger = None
    if section.keys is not None:
        keys = KeyFile(expand(section.keys, os.environ, "access.keys"))
        ring = keys.load()
        if policy != "priority" and any(key.priority for key in ring.keys):
            logger.warning("access: priorities of keys need engine.scheduling_policy: priority")
        counts = expand(section.counts, os.environ, "access.counts")
        ledger = hub_ledger() if counts == "memory" else Ledger(counts)
    if section.usage is not None:
        directory = Path(expand(section.usage, os.environ, "access.usage"))
        if not directory.is_dir():
            message, mend = f"{directory} is no directory", "make it, or mount it"
            raise ConfigError([Finding("usage", Severity.ERROR, message, mend, "access.usage")])
        usage = UsageLog(directory, context.replica_tag)
    return Access(context.app_name, models, keys, ledger, usage)


async def keep_house(access: Access) -> None:
    """Reread the keys, write the record of use, renew what is under way. Until cancelled."""
    follow = asyncio.create_task(access.keys.follow()) if access.keys else None
    beats = 0.0
    try:
        while True:
            await asyncio.sleep(_FLUSH_S)
            beats += _FLUSH_S
            if access.usage is not None:
                await asyncio.to_thread(access.usage.flush)
            if access.ledger is not None and access.open and beats >= _RENEW_S:
                beats = 0.0
                with suppress(LedgerUnavailable):  # said where a request meets it
                    await access.ledger.keep(list(access.open))
    finally:
        if follow is not None:
            follow.cancel()
        await asyncio.gather(*access.settling, return_exceptions=True)
        if access.ledger is not None:
            await access.ledger.close()
        if access.usage is not None:
            access.usage.flush()
