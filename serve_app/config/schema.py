"""The JSON Schema of a config file, for editors: `neuron-serve schema > configs/schema.json`."""

from __future__ import annotations

import json
from typing import Any

from serve_app.config.serve_file import ServeFile
from serve_app.config.vllm_arguments import NEWEST, OWNED, arguments

_JSON_TYPES: dict[str, Any] = {
    "bool": {"type": "boolean"},
    "flag": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "list": {},
    "repeat": {},
    "json": {},
    "text": {},
}


def json_schema() -> dict[str, Any]:
    """The schema of the whole file, `engine` spelled out with vLLM's arguments."""
    schema = ServeFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "neuron-serve config file"
    engine = schema["$defs"]["AppArgs"]["properties"]["engine"]
    engine["properties"] = {
        name: _JSON_TYPES[argument.kind]
        for name, argument in arguments(NEWEST).items()
        if name not in OWNED
    }
    engine["additionalProperties"] = False
    return schema


def json_schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"
