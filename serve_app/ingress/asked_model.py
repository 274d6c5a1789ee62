"""The model that a request asks for, read as vLLM reads it. The body itself stays as it is."""

from __future__ import annotations

import codecs
import json

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header


class BadBody(Exception):
    """No model can be read; says why in words for the client."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def asked_model(body: bytes, content_type: str | None) -> str | None:
    """The name; None where there is none. An empty one is none, as for vLLM.

    Raises:
        BadBody: neither a JSON object nor a form, or `model` is no text.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _in_form(body, options) or None
    try:
        # Of a key that comes twice the last counts, for vLLM too.
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise BadBody("The request body is not valid JSON.") from None
    if not isinstance(request, dict):
        raise BadBody("The request body is not a JSON object.")
    name = request.get("model")
    if name is not None and not isinstance(name, str):
        raise BadBody("`model` must be a string.", "model")
    return name or None


def _in_form(body: bytes, options: dict[bytes, bytes]) -> str | None:
    """The last field `model` of a form; with the parser of Starlette, which vLLM's app uses."""
    headers: dict[bytes, bytes] = {}
    key, value, data = bytearray(), bytearray(), bytearray()
    names: list[str | None] = []
    wanted = is_file = False

    def part_begin() -> None:
        headers.clear()
        data.clear()

    def header_end() -> None:
        headers[bytes(key).lower()] = bytes(value)
        key.clear()
        value.clear()

    def headers_finished() -> None:
        nonlocal wanted, is_file
        _, disposition = parse_options_header(headers.get(b"content-disposition", b""))
        if b"name" not in disposition:
            raise FormParserError("a part has no name")
        wanted, is_file = disposition[b"name"] == b"model", b"filename" in disposition

    def part_data(chunk: bytes, start: int, end: int) -> None:
        if wanted and not is_file:
            data.extend(chunk[start:end])

    def part_end() -> None:
        if wanted:
            names.append(None if is_file else _text(data, options))

    try:
        parser = MultipartParser(
            options.get(b"boundary", b""),
            {
                "on_part_begin": part_begin,
                "on_header_field": lambda chunk, start, end: key.extend(chunk[start:end]),
                "on_header_value": lambda chunk, start, end: value.extend(chunk[start:end]),
                "on_header_end": header_end,
                "on_headers_finished": headers_finished,
                "on_part_data": part_data,
                "on_part_end": part_end,
            },
        )
        parser.write(body)
    except FormParserError:
        raise BadBody("The request body is not a valid form.") from None
    if not names:
        return ""
    if names[-1] is None:
        raise BadBody("`model` must be a string, not a file.", "model")
    return names[-1]


def _text(data: bytearray, options: dict[bytes, bytes]) -> str:
    try:
        charset = codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name
        return data.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return data.decode("latin-1")
