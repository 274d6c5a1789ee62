"""How large a model's checkpoint is, as far as that is known without a download."""

from __future__ import annotations

import os
from pathlib import Path

from serve_app.config import AppArgs
from serve_app.neuron.model_facts import MissingFact, ModelFacts
from serve_app.preflight.neuron import find_model

_UNKNOWN_GIB = 16.0
"""An 8B model in bfloat16."""


def model_of(args: AppArgs, facts: Path | None = None) -> ModelFacts | None:
    """The shape of the model; None where it is not known."""
    try:
        return find_model(args, os.environ, facts)
    except MissingFact:
        return None


def weights_gib(args: AppArgs, facts: Path | None = None) -> float:
    """Of the checkpoint; 0 for the model inside this package, 16 where nothing is known."""
    if args.model.where.startswith("builtin:"):
        return 0.0
    model = model_of(args, facts)
    if model is None:
        return _UNKNOWN_GIB
    size = {"float32": 4}.get(model.dtype, 2)
    return model.parameters * (1 if model.quantization else size) / 2**30
