"""The compiled model of an `nxdi` replica: found, fetched, or compiled once for all.

vLLM's plugin loads what stands in NEURON_COMPILED_ARTIFACTS without a look, and compiles into it
when nothing does. So the look is here, before a core is taken, and a compile goes into a draft that
gets its name when the engine runs: a replica that dies on the way leaves nothing that looks whole.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path

from serve_app.artifacts import manifest as manifests
from serve_app.artifacts.draft import draft_of, only_one, reveal, set_aside
from serve_app.artifacts.manifest import ArtifactError
from serve_app.artifacts.recipe import recipe_of, with_versions
from serve_app.artifacts.store import StoreError, open_store
from serve_app.artifacts.verdict import Judgement, Verdict, judge
from serve_app.backends import EnginePlan
from serve_app.backends.nxdi import VARIABLE
from serve_app.config import AppArgs
from serve_app.config.environment import expand
from serve_app.engine.errors import StartupError
from serve_app.engine.phases import Phases, logger
from serve_app.preflight.neuron import find_model

COMPILE = "compile"
ARTIFACT = "artifact"
_CACHE = "~/.cache/neuron-serve/artifacts"


class CompiledModel:
    """Of one start. `prepare`, start the engine, then `keep`; `close` in any case.

    Raises:
        StartupError: the store is of no known kind.
    """

    def __init__(self, args: AppArgs, plan: EnginePlan, model: str, phases: Phases) -> None:
        self._args = args.artifacts
        self._path = plan.env.get(VARIABLE)
        self._phases = phases
        self._recipe = with_versions(recipe_of(args, plan, find_model(args, os.environ), model))
        self._held = ExitStack()
        self._draft: Path | None = None
        self._target: Path | None = None
        self._begin = 0.0
        url = self._args.store
        try:
            self._store = open_store(expand(url, os.environ, "artifacts.store")) if url else None
        except StoreError as error:
            raise StartupError(str(error)) from None

    def prepare(self, environment: MutableMapping[str, str]) -> None:
        """Set the variable that the plugin reads. Waits while another replica compiles the same.

        Raises:
            StartupError: what is there does not fit, or nothing is and the configuration is
                frozen.
        """
        try:
            found = self._found()
        except (ArtifactError, StoreError, OSError) as error:
            raise StartupError(str(error)) from None
        if found is not None:
            environment[VARIABLE] = str(found)
            self._phases.compile_seconds = None if self._draft else 0.0

    def _found(self) -> Path | None:
        path = self._path
        if path is None and self._store is None:
            return None  # the plugin compiles at each start
        if path is not None:
            self._target = Path(expand(path, os.environ, "artifacts.path"))
            if ready := self._usable():
                return ready
        if ready := self._fetched():
            return ready
        if self._args.frozen:
            where = self._target or self._args.store
            raise StartupError(
                f"nothing is compiled at {where} and artifacts.frozen is set -> run "
                "`neuron-serve compile` first, or remove artifacts.frozen"
            )
        return self._compiling()

    def _usable(self) -> Path | None:
        """The target, when it fits; moves on to a name beside it when it may be compiled anew."""
        assert self._target is not None
        judged = self._judge(self._target)
        if judged is not None and judged.verdict is not Verdict.USABLE:
            if self._args.on_mismatch == "fail":
                raise StartupError(f"{self._target}: {judged}")
            logger.warning("%s: %s; it is compiled anew beside it", self._target, judged)
            self._target = self._target.with_name(f"{self._target.name}-{self._recipe.key}")
            judged = self._judge(self._target)
        if judged is None:
            return None
        if judged.verdict is not Verdict.USABLE:
            raise StartupError(f"{self._target}: {judged}")
        for note in judged.notes:
            logger.info("%s: %s", self._target, note)
        return self._target

    def _fetched(self) -> Path | None:
        """From the store, by way of this machine's cache; what is cached needs no store."""
        if self._store is None:
            return None
        key = self._recipe.key
        cache = None
        if "://" in (self._args.store or ""):  # a mounted directory is used in place
            cache = Path(_CACHE).expanduser()
            judged = self._judge(cache / key)
            if judged is not None and judged.verdict is Verdict.USABLE:
                return cache / key
        if self._store.find(key) is None:
            return None
        where = f"{key} from {self._store.name}"
        self._phases.report(ARTIFACT, where)
        limit = self._args.cache_gib
        found = self._store.fetch(
            key,
            cache,
            None if limit is None else int(limit * 2**30),
            self._phases.transfer(ARTIFACT, where),
        )
        judged = self._judge(found)
        if judged is None or judged.verdict is not Verdict.USABLE:
            raise StartupError(f"{self._store.name}: {key}: {judged or 'nothing is compiled'}")
        return found

    def _compiling(self) -> Path | None:
        """A draft to compile into, with the lock that makes the others wait; or what they made."""
        if self._target is None:
            self._target = Path(_CACHE).expanduser() / self._recipe.key
        self._phases.report(COMPILE, "waits while another one on this node compiles the same")
        self._held.enter_context(only_one(self._target))
        if self._store is not None:
            self._held.enter_context(self._store.claim(self._recipe.key, report=self._waits))
        if ready := self._usable() or self._fetched():
            self.close()
            return ready
        self._phases.report(COMPILE, f"into {self._target}; 10 to 60 minutes")
        set_aside(self._target)
        self._draft = draft_of(self._target)
        self._draft.mkdir()
        self._begin = self._draft.stat().st_mtime
        return self._draft

    def _judge(self, directory: Path) -> Judgement | None:
        judged = judge(directory, self._recipe)
        if judged is not None:
            self._phases.verdicts.add(str(judged.verdict))
        return judged

    def _waits(self, seconds: float, holder: str) -> None:
        self._phases.report(COMPILE, f"waits while {holder} compiles the same")

    def keep(self) -> None:
        """The engine runs: what it compiled gets its manifest and its name, and is published."""
        if self._draft is None or self._target is None:
            return
        try:
            # NxDI writes what it compiles, and then loads it.
            written = [path.stat().st_mtime for path in self._draft.rglob("*")]
            self._phases.compile_seconds = max(written, default=self._begin) - self._begin
            manifests.seal(self._draft, self._recipe)
            reveal(self._draft, self._target)
            logger.info("compiled model: %s, key %s", self._target, self._recipe.key)
            if self._store is not None:
                where = f"{self._recipe.key} to {self._store.name}"
                report = self._phases.transfer(ARTIFACT, where)
                self._store.publish(self._recipe.key, self._target, report)
        except (ArtifactError, StoreError, OSError) as error:
            # The engine serves all the same; the next start compiles again.
            logger.warning("what was compiled could not be kept: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Let others go on."""
        self._held.close()
