"""Rules about a model that lies in a local directory: it is there and fits the arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.config import AppArgs, ConfigError, Finding, Severity
from serve_app.config.sources import is_directory, resolve


def check_model(args: AppArgs, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The directory exists, holds a model, and is as long as `max_model_len` asks."""
    try:
        source = resolve(args.model.where, environment, "model.source")
    except ConfigError as error:
        # Of an unset variable the environment rule speaks.
        yield from (fault for fault in error.findings if fault.rule != "environment")
        return
    if not is_directory(source):
        return
    directory = Path(source)
    if not directory.is_dir():
        yield _error("model.source", f"there is no directory {source}", "give an absolute path")
        return
    try:
        config = json.loads((directory / "config.json").read_text())
    except OSError:
        yield _error(
            "model.source", f"{source} holds no config.json", "name the directory of the model"
        )
        return
    except ValueError as error:
        yield _error("model.source", f"{source}/config.json is not JSON: {error}", "fetch it again")
        return
    yield from _length(args, config)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights and not any(directory.glob("*.bin")):
        yield _error("model.source", f"{source} holds no weights", "fetch *.safetensors into it")
    for file in weights:
        if fault := _incomplete(file):
            yield _error("model.source", f"{file}: {fault}", "fetch it again")


def _incomplete(file: Path) -> str | None:
    """What is wrong with a safetensors file, by its header alone.

    Eight bytes hold the header's length; the header names the end of each tensor
    (huggingface/safetensors, README, "Format").
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > size:
            return f"cut off: {size} bytes, and its header alone has {8 + length}"
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return "it is no safetensors file"
    whole = 8 + length + max(ends, default=0)
    return f"cut off: {size} of {whole} bytes" if size < whole else None


def _length(args: AppArgs, config: dict[str, Any]) -> Iterator[Finding]:
    # vLLM refuses a longer one unless VLLM_ALLOW_LONG_MAX_MODEL_LEN=1; rope scaling extends it
    # (vllm/config/model.py, _get_and_verify_max_len).
    wanted = args.engine.get("max_model_len")
    longest = config.get("max_position_embeddings")
    scaled = config.get("rope_scaling") or args.engine.get("hf_overrides")
    if not isinstance(wanted, int) or not isinstance(longest, int) or scaled:
        return
    if wanted > longest and args.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        yield _error(
            "engine.max_model_len",
            f"max_model_len {wanted} is beyond the model's {longest} positions",
            f"set it to {longest} or less",
        )


def _error(path: str, message: str, mend: str) -> Finding:
    return Finding("model", Severity.ERROR, message, mend, path)
