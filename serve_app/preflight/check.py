"""Run every rule over a configuration and collect all findings, not the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from serve_app.config import AppArgs, Document, Finding
from serve_app.config.environment import references, unset
from serve_app.preflight.model_directory import check_model


def check_document(
    document: Document, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """The findings of every application of the file, with paths in the document."""
    return [
        finding.under(f"{path}.args")
        for path, application in document.applications()
        for finding in check_application(application.args, environment)
    ]


def check_application(args: AppArgs, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """The findings of one application. The replica runs the same before it loads a model."""
    return [*_environment(args, environment), *check_model(args, environment)]


def _environment(args: AppArgs, environment: Mapping[str, str]) -> Iterator[Finding]:
    values = {f"env.{name}": value for name, value in args.env.items()}
    values |= {"model.source": args.model.where, "model.tokenizer": args.model.tokenizer or ""}
    for path, value in values.items():
        for name in references(value):
            if not environment.get(name):
                yield unset(name, path)
