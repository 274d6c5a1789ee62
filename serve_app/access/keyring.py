"""The API keys of a file: its form, and who a presented key belongs to.

The file holds no key, only the SHA-256 of each. A key is 32 random bytes: nobody guesses one from
its hash, so that the slow hashes made for passwords would only make each request slower.

Neither a key nor its hash may be in a message, a log or a repr. Messages are therefore written
here, from the place and what belongs there; pydantic's and PyYAML's own repeat what they read.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from serve_app.access.quota import Quota
from serve_app.config.document import dotted
from serve_app.config.findings import ConfigError, Finding, Severity, did_you_mean
from serve_app.config.sections import Strict

KEY = re.compile(r"ns-(?P<id>[A-Za-z0-9]{1,32})-[A-Za-z0-9_-]{43,256}")
"""The text of a key. 43 characters of base64 hold 32 bytes."""

_PLAIN_WORD = re.compile(r"[A-Za-z_]{1,24}")
"""An unknown YAML key that may be shown: too short for a secret, without digits."""
_PLACES: dict[tuple[str | int, ...], str] = {(): "`keys:` and a list", ("keys",): "a list of keys"}
_NOBODY = "0" * 64
_HEADERS = (b"authorization", b"x-api-key", b"api-key")


def instant(value: object) -> datetime:
    """A date or a timestamp in UTC: a date begins at midnight, what names no zone is in UTC.

    Raises a ValueError.
    """
    if isinstance(value, str):  # JSON has no dates
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError("no date")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the calendar") from None


def _no_key(name: str) -> str:
    if KEY.fullmatch(name):
        raise ValueError("a key")
    return name


Instant = Annotated[datetime, BeforeValidator(instant)]
Whole = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# Lax for the kind of sequence only: YAML has lists, and a key never changes.
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)
]


class Key(Strict):
    """One key. The descriptions say what is expected: errors quote them."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9]{1,32}$", description="1 to 32 letters and digits, as in ns-ID-..."
    )
    name: Annotated[str, AfterValidator(_no_key)] = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="1 to 64 letters, digits and . _ -, shown in logs and metrics, and no key",
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", repr=False, description="64 hex digits in lower case"
    )
    models: Names | None = Field(default=None, description="a list of names of models (else all)")
    expires: Instant | None = Field(
        default=None,
        description="a date or a timestamp, UTC, when the key ends (without it: never)",
    )
    admin: bool = Field(default=False, description="true or false")
    priority: Whole = Field(
        default=0, description="a whole number; as in vLLM, lower is served earlier"
    )
    requests_per_minute: Count | None = Field(default=None, description="a whole number from 1")
    tokens_per_minute: Count | None = Field(default=None, description="a whole number from 1")
    concurrent_requests: Count | None = Field(default=None, description="a whole number from 1")
    max_tokens: Count | None = Field(default=None, description="a whole number from 1, per request")

    @property
    def quota(self) -> Quota:
        return Quota(self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)

    def allows(self, model: str) -> bool:
        """Whether requests may name `model`."""
        return self.models is None or model in self.models

    def expired(self, now: datetime) -> bool:
        """From the very instant `expires`; `now` has a zone."""
        return self.expires is not None and now >= self.expires


class _Content(Strict):
    keys: list[Key]


@dataclass(frozen=True)
class Refused:
    """Why a request gets no key, as an OpenAI error says it."""

    code: str
    message: str
    status: int = 401


MISSING = Refused("missing_api_key", "An API key is needed: send Authorization: Bearer KEY.")
MALFORMED = Refused("malformed_api_key", "That is not the form of an API key of this server.")
UNKNOWN = Refused("invalid_api_key", "This API key is not known here.")
EXPIRED = Refused("expired_api_key", "This API key has expired.")


@dataclass(frozen=True)
class Keyring:
    """All keys of a file."""

    keys: tuple[Key, ...] = ()

    @cached_property
    def _by_id(self) -> dict[str, Key]:
        return {key.id: key for key in self.keys}

    def find(self, presented: str | None, now: datetime) -> Key | Refused:
        """The key whose text was presented; None: no text was. `now` has a zone.

        Takes the same time for an unknown id, a wrong secret and a right one.
        """
        if presented is None:
            return MISSING
        match = KEY.fullmatch(presented)
        if match is None:
            return MALFORMED
        key = self._by_id.get(match["id"])
        right = hmac.compare_digest(digest(presented), key.sha256 if key else _NOBODY)
        if key is None or not right:
            return UNKNOWN
        return EXPIRED if key.expired(now) else key


def digest(text: str) -> str:
    """What the file holds of a key's text."""
    return sha256(text.encode()).hexdigest()


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request presents: as a bearer, else as Anthropic's or as Azure's clients do.

    None: there is none. Of a header that stands twice the first counts.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if (header := name.lower()) in _HEADERS:
            found.setdefault(header, value.decode("latin-1").strip())
    scheme, _, credentials = found.get(b"authorization", "").partition(" ")
    token = credentials.strip() if scheme.lower() == "bearer" else ""
    return token or found.get(b"x-api-key") or found.get(b"api-key") or None


def issue(fields: Mapping[str, Any], taken: Collection[str] = ()) -> tuple[Key, str]:
    """A new key with these fields and its text, which is nowhere else; its id is not in `taken`.

    Raises:
        ConfigError: a field is not as Key wants it.
    """
    while (identifier := f"k{secrets.token_hex(4)}") in taken:
        pass
    text = f"ns-{identifier}-{secrets.token_urlsafe(32)}"
    try:
        return Key.model_validate({"id": identifier, "sha256": digest(text), **fields}), text
    except ValidationError as error:
        findings = _findings(error, ("keys", 0))
    raise ConfigError(findings)  # not inside `except`: its context holds what was read


def parse(text: str, file: str = "") -> Keyring:
    """The keys of a file's content.

    Raises:
        ConfigError: with every fault and its place; no part of a key or a hash.
    """
    data, findings = _read(text)
    if not findings:
        try:
            keyring = Keyring(tuple(_Content.model_validate(data).keys))
        except ValidationError as error:
            findings = _findings(error)
        else:
            if not (findings := list(_same_names(keyring.keys))):
                return keyring
    raise ConfigError(findings, file)


def dump(keys: Iterable[Key]) -> str:
    """The content that `parse` reads as these keys."""
    entries = []
    for key in keys:
        entry = key.model_dump(exclude_unset=True)
        if key.models is not None:
            entry["models"] = list(key.models)
        if key.expires is not None and key.expires.time() == time():
            entry["expires"] = key.expires.date()
        entries.append(entry)
    return yaml.safe_dump({"keys": entries}, sort_keys=False)


def _same_names(keys: Iterable[Key]) -> Iterator[Finding]:
    # One space for both: `keys revoke` takes either.
    seen: set[str] = set()
    for index, key in enumerate(keys):
        for field, value in (("id", key.id), ("name", key.name)):
            if value in seen:
                message = f"another key is called {value!r}, too"
                yield _error(message, "ids and names must differ", ("keys", index, field))
        seen |= {key.id, key.name}


def _read(text: str) -> tuple[object, list[Finding]]:
    """The plain data of YAML, or why there is none."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if twice := list(_twice(root)):
            return None, twice
        return loader.construct_document(root) if root else None, []
    # PyYAML's constructors let out whatever int(), datetime() and their like raise.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        return None, [_error("it is not valid YAML", line=mark.line + 1 if mark else None)]


def _twice(root: yaml.Node | None) -> Iterator[Finding]:
    """YAML lets a key stand twice and drops the first, perhaps with its `expires`."""
    lists = [value.value for _, value in _pairs(root) if isinstance(value, yaml.SequenceNode)]
    for node in [root, *chain(*lists)]:
        seen: set[str] = set()
        for key, _ in _pairs(node):
            if key.value in seen:
                message = f"the key{_shown(key.value)} stands twice"
                yield _error(message, "keep one", line=key.start_mark.line + 1)
            seen.add(key.value)


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]


def _findings(error: ValidationError, base: tuple[str | int, ...] = ()) -> list[Finding]:
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    # One fault for a field, though each kind of value that it may have has failed.
    return list(dict.fromkeys(_finding(fault["type"], (*base, *fault["loc"])) for fault in faults))


def _finding(kind: str, location: tuple[str | int, ...]) -> Finding:
    fields = Key.model_fields
    if kind == "extra_forbidden":
        word, place = str(location[-1]), location[:-1]
        mend = did_you_mean(word, fields if place else ["keys"])
        return _error(f"unknown key{_shown(word)}", mend, place)
    if kind == "missing":
        word = str(location[-1])
        expected = fields[word].description if word in fields else "a list"
        return _error(f"{word!r} is missing", f"add it: {expected}", location[:-1])
    # Below a field stand an index, or the kinds of values that pydantic tried.
    field = fields.get(str(location[2])) if len(location) > 2 else None
    if field is not None:
        return _error(f"expected {field.description}", "", location[:3])
    expected = _PLACES.get(location, "a mapping with id, name and sha256")
    return _error(f"expected {expected}", "", location[:2])


def _shown(word: str) -> str:
    return f" {word!r}" if _PLAIN_WORD.fullmatch(word) else ""


def _error(
    message: str, mend: str = "", location: tuple[str | int, ...] = (), line: int | None = None
) -> Finding:
    return Finding("keys", Severity.ERROR, message, mend, dotted(location), line)
