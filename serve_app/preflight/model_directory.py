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
    if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        yield _error("model.source", f"{source} holds no weights", "fetch *.safetensors into it")


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
