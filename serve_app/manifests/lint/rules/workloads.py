"""Rules about Jobs and Deployments: what the API server refuses, and what ends a compile."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.manifests.lint.objects import at
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.references import matches
from serve_app.manifests.lint.view import Manifests

_JOBS = "kubernetes.io docs: concepts/workloads/controllers/job"
_LONGEST_COMPILE = 3 * 3600
"""Seconds; an hour and more is common for 70 billion parameters."""


@rule("job-restart", "A Job's pods end", f"{_JOBS}, Pod Template: Never or OnFailure")
def restart(manifests: Manifests) -> Iterator[Trip]:
    for job in manifests.of("Job"):
        given = at(job, "spec", "template", "spec", "restartPolicy")
        if given not in ("Never", "OnFailure"):
            path = "spec.template.spec.restartPolicy"
            yield Trip(job, path, f"{given or 'Always'} is refused for a Job", "set Never")


@rule("job-deadline", "No compile is thrown away for its time", f"{_JOBS}, Job termination")
def deadline(manifests: Manifests) -> Iterator[Trip]:
    for job in manifests.of("Job"):
        compiles = at(job, "spec", "template", "metadata", "labels", "app.kubernetes.io/component")
        for path in (("spec",), ("spec", "template", "spec")):
            given = at(job, *path, "activeDeadlineSeconds")
            if compiles == "compile" and given is not None and given < _LONGEST_COMPILE:
                message = f"a compile is ended after {given} s, and may take hours"
                where = ".".join((*path, "activeDeadlineSeconds"))
                yield Trip(job, where, message, "leave it out")


@rule(
    "deployment-selector",
    "A Deployment selects its own pods",
    "kubernetes.io docs: concepts/workloads/controllers/deployment, Selector: else it is refused",
)
def deployment(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("Deployment", "StatefulSet", "DaemonSet"):
        labels = at(thing, "spec", "template", "metadata", "labels") or {}
        if not at(thing, "spec", "selector") or not matches(at(thing, "spec", "selector"), labels):
            message = "the labels of its pods are others"
            yield Trip(thing, "spec.selector", message, "make them the same")
