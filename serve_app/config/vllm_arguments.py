"""Names and kinds of `vllm serve`'s arguments, per vLLM version, known without vLLM.

The table is `vllm_arguments.json`; `scripts/update_vllm_arguments.py` writes it from the
parser of an installed vLLM, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

NEWEST = "0.29"
"""The vLLM of the `cpu` back end, whose arguments the editor's schema lists."""

OWNED = {
    "model": "set model.source",
    "model_tag": "set model.source",
    "served_model_name": "set model.id",
    "tokenizer": "set model.tokenizer",
    "revision": "set model.revision",
    "hf_token": "put HF_TOKEN: ${HF_TOKEN} under env",
    "api_key": "keys do not belong into a config file",
    "host": "set http_options.host of the file",
    "port": "set http_options.port of the file",
    "uds": "Ray Serve listens",
    "root_path": "set route_prefix of the application",
    "config": "write its arguments here",
    "headless": "a replica holds the whole engine",
    "grpc": "the routes are OpenAI's over HTTP",
    "api_server_count": "set scaling.num_replicas",
    "ssl_keyfile": "set http_options of the file",
    "ssl_certfile": "set http_options of the file",
}
"""Arguments that other parts of the configuration decide, each with where to set it."""


@dataclass(frozen=True)
class Argument:
    """One argument: `kind` is bool, flag, int, float, list, repeat, json or text.

    `list` takes its values in one go, `repeat` each with the option before it.
    """

    kind: str
    choices: tuple[Any, ...] = ()

    def refuses(self, value: Any) -> str | None:
        """What the argument takes, in words, when `value` is plainly of another type."""
        if value is None:
            return None
        wanted = _TYPES.get(self.kind, (object,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind in _NUMBERS):
            return _WORDS[self.kind]
        items = value if isinstance(value, list) else [value]
        if self.choices and any(str(item) not in map(str, self.choices) for item in items):
            return "one of " + ", ".join(str(c) for c in self.choices if c != "None")
        return None

    def cli(self, name: str, value: Any) -> list[str]:
        """`value` as words of the `vllm serve` command line; None means vLLM's default."""
        option = "--" + name.replace("_", "-")
        if value is None or (self.kind == "flag" and not value):
            return []
        if self.kind == "flag":
            return [option]
        if self.kind == "bool":
            return [option if value else option.replace("--", "--no-", 1)]
        values = value if isinstance(value, list) else [value]
        if self.kind == "list":
            return [option, *(_word(item) for item in values)]
        if self.kind == "repeat":
            return [f"{option}={_word(item)}" for item in values]
        return [f"{option}={_word(value)}"]


_NUMBERS = ("int", "float")
_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "flag": (bool,),
    "int": (int,),
    "float": (int, float),
    "json": (dict, list, str, int),
}
_WORDS = {
    "bool": "true or false",
    "flag": "true or false",
    "int": "a whole number",
    "float": "a number",
    "json": "a mapping",
}


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("serve_app.config").joinpath("vllm_arguments.json").read_text()
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


@cache
def arguments(version: str) -> Mapping[str, Argument]:
    """The arguments of the vLLM `version` ("0.29").

    Raises:
        KeyError: no table for this version.
    """
    return {
        name: Argument(entry) if isinstance(entry, str) else Argument(entry[0], tuple(entry[1]))
        for name, entry in _table()[version].items()
    }


@cache
def every_argument() -> Mapping[str, Argument]:
    """The arguments of all versions together; a newer version's kind wins. Whether a name fits
    the version of the back end is for a pre-flight rule to say."""
    versions = sorted(_table(), key=lambda text: [int(part) for part in text.split(".")])
    return {name: argument for v in versions for name, argument in arguments(v).items()}


def command(version: str, model: str, engine_args: Mapping[str, Any]) -> list[str]:
    """The `vllm serve` command line that these engine arguments stand for."""
    known = arguments(version)
    words = ["vllm", "serve", model]
    for name, value in engine_args.items():
        words += known[name].cli(name, value)
    return words
