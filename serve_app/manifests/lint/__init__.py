"""Kubernetes manifests, looked at as strictly as the operators look that will get them."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.manifests.lint.objects import BadInput, Object, read
from serve_app.manifests.lint.rule import Fault, Rule
from serve_app.manifests.lint.rules import RULES
from serve_app.manifests.lint.view import Manifests

__all__ = ["RULES", "BadInput", "Fault", "Object", "Rule", "lint", "read"]


def lint(objects: Sequence[Object]) -> list[Fault]:
    """The faults of a set of objects that are applied together, in the order of the rules.

    A fault in the shape of an object (an unknown field, a wrong type) is told alone: what other
    rules would say of such objects is guesswork.

    Raises:
        ModuleNotFoundError: the extra `k8s` is not installed; the message is one clear line.
    """
    manifests = Manifests(objects)
    for shape in (True, False):
        faults = [
            fault for r in RULES.values() if r.shape is shape for fault in r.faults(manifests)
        ]
        if faults:
            return faults
    return []
