"""What was compiled against what is asked for, when the artifact is on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from serve_app.artifacts.manifest import ArtifactError
from serve_app.artifacts.recipe import recipe_of
from serve_app.artifacts.verdict import Verdict, judge
from serve_app.backends import EnginePlan
from serve_app.backends.nxdi import VARIABLE
from serve_app.config import AppArgs, ConfigError, Finding, Severity
from serve_app.config.environment import expand, references
from serve_app.config.sources import is_directory, resolve
from serve_app.neuron.model_facts import ModelFacts

_RULE = "artifact"
_PATH = "artifacts.path"
_SOURCE = (
    "vllm-neuron worker/neuronx_distributed_model_loader.py, load_weights: the artifact is loaded "
    "as it is"
)


def check_artifact(
    args: AppArgs, plan: EnginePlan, facts: ModelFacts | None, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Each difference between `artifacts.path` and the configuration. Nothing there: no finding."""
    if plan.backend == "neuron" and "://" in (args.artifacts.store or ""):
        message = "the native plugin's remote cache is a directory"
        mend = "mount it (NFS, FSx for Lustre over S3) and name the mount"
        yield Finding(_RULE, Severity.ERROR, message, mend, "artifacts.store")
    path = plan.env.get(VARIABLE)
    if plan.backend == "nxdi" and args.artifacts.frozen and not (path or args.artifacts.store):
        message = "a frozen replica never compiles, and there is nowhere to load from"
        mend = "set artifacts.path or artifacts.store"
        yield Finding(_RULE, Severity.ERROR, message, mend, "artifacts.frozen")
    if plan.backend != "nxdi" or not path:
        return
    if any(not environment.get(name) for name in references(path)):
        return  # of an unset variable another rule speaks
    directory = Path(expand(path, environment, _PATH))
    recipe = recipe_of(args, plan, facts, model_directory(args, environment))
    try:
        judged = judge(directory, recipe)
    except ArtifactError as error:
        yield Finding(_RULE, Severity.ERROR, str(error), "", _PATH)
        return
    if judged is None:
        return
    anew = args.artifacts.on_mismatch == "compile"
    severity = Severity.WARNING if anew else Severity.ERROR
    for difference in judged.differences:
        message = f"{directory}: {difference._replace(mend='')}"
        message += "; it is compiled anew beside it" if anew else f" ({difference.verdict})"
        yield Finding(_RULE, severity, message, difference.mend, _PATH, source=_SOURCE)
    for fault in judged.faults:
        mend = "" if anew else "compile again: neuron-serve compile"
        yield Finding(_RULE, severity, f"{directory}: {fault}", mend, _PATH)
    if judged.verdict is Verdict.USABLE:
        for note in judged.notes:
            yield Finding(_RULE, Severity.NOTE, f"{directory}: {note}", "", _PATH)


def model_directory(args: AppArgs, environment: Mapping[str, str]) -> str | None:
    """The model's files, when the configuration names a directory of this machine."""
    try:
        source = resolve(args.model.where, environment, "model.source")
    except ConfigError:
        return None  # of an unset variable or an unknown model another rule speaks
    return source if is_directory(source) else None
