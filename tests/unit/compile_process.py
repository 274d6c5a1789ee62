"""Compiles with the stand-in compiler, in this process or in one that a test stops.

python compile_process.py CONFIG MODEL DIRECTORY LOG GRACE          compile once
python compile_process.py CONFIG MODEL DIRECTORY LOG GRACE forks    compile in a child for each
                                                                    line read, tell its number
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from serve_app.artifacts import manifest, process_group
from serve_app.artifacts.job import Job, compile_job
from serve_app.artifacts.recipe import recipe_of
from serve_app.artifacts.runner import compile_into
from serve_app.backends import make_plan
from serve_app.config import load
from serve_app.preflight.neuron import find_model


class Application:
    """What a configuration file wants compiled, from the model in a local directory."""

    def __init__(self, config: Path, model: Path) -> None:
        ((_, self._application),) = load(config).applications()
        self._args = self._application.args
        self._plan = make_plan(self._args)
        self._model = model
        self.recipe = recipe_of(self._args, self._plan, find_model(self._args, {}))

    def build(self, draft: str, dropped: tuple[str, ...]) -> Job:
        return compile_job(
            self._args,
            self._plan,
            self.recipe,
            str(self._model),
            directory=draft,
            without=dropped,
        )

    def seal(self, draft: Path, dropped: tuple[str, ...]) -> manifest.Manifest:
        return manifest.seal(draft, self.recipe, dropped)

    def seal_slowly(self, draft: Path, dropped: tuple[str, ...]) -> manifest.Manifest:
        """As if the files were large: a kill can hit it."""
        pause = 0.02  # s for each file
        return manifest.seal(draft, self.recipe, dropped, report=lambda size: time.sleep(pause))


def main() -> None:
    config, model, directory, log = map(Path, sys.argv[1:5])
    process_group.GRACE = float(sys.argv[5])
    application = Application(config, model)

    def compile_once() -> None:
        compile_into(
            application.build, directory, application.seal_slowly, log, lambda progress: None, False
        )

    if sys.argv[6:] != ["forks"]:
        compile_once()
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            compile_once()
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
