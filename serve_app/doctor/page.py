"""docs/doctor.md: every known failure and check."""

from __future__ import annotations

from itertools import groupby

from serve_app.doctor.checks import CHECKS
from serve_app.doctor.known import Failure, failures, fill

_HEAD = """# Doctor

`neuron-serve doctor` looks at this machine; `neuron-serve doctor LOG` (or `-`, or a `.gz`) looks
through a log for failures that are known. Both say the cause and the mend. Nothing leaves the
machine, and nothing is asked of the network. Secrets in lines that are shown are replaced by
`***`.

```
neuron-serve doctor                                   # exit 1 when a check fails
kubectl logs POD --previous | neuron-serve doctor -   # exit 1 when something known is in it
neuron-serve doctor engine.log.gz --json
```

In a log the first cause counts most: what follows is often its consequence, and is shown after
it. A log in which nothing is known may still be a bad one: then the last line that looks like an
error is shown. Nothing here was run on a chip: the texts are those of AWS's documentation, of
public issues, and of the source of vLLM 0.29, Ray 2.60, huggingface_hub 2.4 and NIXL 1.3 as
installed; other versions may say it in other words. *unverified* marks what no source confirms.

Written by `neuron-serve doctor --known > docs/doctor.md`. To add a failure: an entry in
`serve_app/doctor/failures/`, and a few lines of a log in `tests/unit/data/doctor/`.
"""

_AREAS = {
    "compiler": "Compiler",
    "runtime": "Neuron runtime and driver",
    "neuron-engine": "NxDI and the Neuron plugins",
    "own": "neuron-serve",
    "vllm": "vLLM and transformers",
    "hub": "Hugging Face hub, files",
    "transfer": "Prefill to decode: NIXL, EFA",
    "ray": "Ray, Ray Serve, HAProxy",
    "kubernetes": "Kubernetes",
}


def markdown() -> str:
    """The page."""
    parts = [_HEAD, "\n## Checks of a machine\n\n| Check | What | Source |\n|---|---|---|\n"]
    parts += [
        f"| `{one.id}` | {_cell(one.title)} | {_cell(one.source)} |\n" for one in CHECKS.values()
    ]
    parts.append(
        f"\n## Known failures\n\n{len(failures())} of them. A word in capitals may be what the "
        "log said there. Those in italics are consequences.\n"
    )
    by_area = sorted(failures(), key=lambda failure: list(_AREAS).index(failure.area))
    for area, entries in groupby(by_area, key=lambda failure: failure.area):
        parts.append(
            f"\n### {_AREAS[area]}\n\n| Failure | Cause | Mend | Source |\n|---|---|---|---|\n"
        )
        parts += [_row(failure) for failure in entries]
    return "".join(parts)


def _row(failure: Failure) -> str:
    name = f"*{failure.id}*" if failure.consequence else f"`{failure.id}`"
    names = {n: n.upper() for words in failure.words for n in words.pattern.groupindex}
    texts = (fill(failure.cause, names), fill(failure.mend, names), failure.source)
    return f"| {name} | {' | '.join(map(_cell, texts))} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
