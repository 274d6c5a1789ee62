#!/usr/bin/env python3
"""Write the argument table of the vLLM that this interpreter has.

Run it once in the environment of each vLLM that a back end uses:
    python scripts/update_vllm_arguments.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import vllm
from vllm.utils.argparse_utils import FlexibleArgumentParser

try:  # vLLM >= 0.29
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser

TABLE = Path(__file__).parents[1] / "serve_app/config/vllm_arguments.json"


def kind(action: argparse.Action) -> str:
    """The kind that serve_app.config.vllm_arguments.Argument knows this action by."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "bool"
    if action.nargs == 0:
        return "flag"
    if action.nargs in ("+", "*"):
        return "list"
    if isinstance(action, argparse._AppendAction):
        return "repeat"
    name = getattr(inner(action.type), "__name__", "")
    if name in ("int", "float"):
        return name
    json_types = ("loads", "parse_dataclass", "_parse_type", "union_dict_and_str")
    return "json" if name in json_types else "text"


def inner(convert: Any) -> Any:
    """The converter behind vLLM's `optional_type(converter)`."""
    cells = [cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()]
    return next(filter(callable, cells), convert)


def table() -> dict[str, str | list[Any]]:
    """Name -> kind or [kind, choices], for every argument of the installed `vllm serve`."""
    parser = make_arg_parser(FlexibleArgumentParser())
    return {
        action.dest: [kind(action), sorted(action.choices, key=str)]
        if action.choices
        else kind(action)
        for action in parser._actions
        if action.dest != "help"
    }


def text(tables: dict[str, Any]) -> str:
    """One line per argument."""
    versions = []
    for name, arguments in sorted(tables.items()):
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in arguments.items()]
        versions.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"


if __name__ == "__main__":
    version = ".".join(vllm.__version__.split(".")[:2])
    tables = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    tables[version] = dict(sorted(table().items()))
    TABLE.write_text(text(tables))
    print(f"{TABLE.name}: {len(tables[version])} arguments of vLLM {version}")
