"""All rules about manifests; importing this package registers them in RULES.

A module holds one topic. A fault is what a cluster rejects, what stays pending, or what cuts a
stream; matters of taste have no rule.
"""

from serve_app.manifests.lint.rule import RULES
from serve_app.manifests.lint.rules import (  # noqa: F401  (each registers its rules)
    kuberay,
    kuberay_modes,
    neuron,
    nodes,
    pods,
    references,
    serve,
    shapes,
    traffic,
    workloads,
)  # isort: skip

__all__ = ["RULES"]
