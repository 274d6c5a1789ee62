"""A directory that appears whole: written under a draft's name beside it, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from serve_app.artifacts.manifest import ArtifactError

_NAME = re.compile(r"\.(?P<target>.+)\.draft-(?P<pid>\d+)")


def draft_of(target: Path) -> Path:
    """A fresh draft of this process. Drafts of dead processes are removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for other in target.parent.glob(f".{target.name}.draft-*"):
        match = _NAME.fullmatch(other.name)
        if match and match["target"] == target.name and not _lives(int(match["pid"])):
            shutil.rmtree(other, ignore_errors=True)
    draft = target.parent / f".{target.name}.draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def reveal(draft: Path, target: Path) -> None:
    """Rename the draft to its target, which may exist only when it is empty.

    Raises:
        ArtifactError: something is there; both are kept.
    """
    try:
        draft.rename(target)
    except OSError as error:
        raise ArtifactError(
            f"{target} is there already ({error.strerror}); what was compiled is in {draft} "
            "-> move one of them away"
        ) from None


def set_aside(target: Path) -> None:
    """Move what a compile left that did not end out of the way: NxDI's record without graphs."""
    if target.is_dir() and any(target.iterdir()):
        target.rename(target.parent / f".{target.name}.draft-0")


def _lives(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
