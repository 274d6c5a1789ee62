"""The house in order: sizes, who imports vLLM, which private parts of Ray are used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "serve_app"


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders or ("",) for path in (PACKAGE / folder).rglob("*.py")]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def is_vllm(module: str) -> bool:
    return module.split(".")[0] == "vllm"


def test_the_serving_path_is_small() -> None:
    # From Ray's replica to vLLM's app; what the front door and keys do beside it is counted apart.
    path = modules("engine", "deployments", "ingress")
    assert sum(len(file.read_text().splitlines()) for file in path) < 3500
    beside = modules("access", "front_door", "edge")
    assert sum(len(file.read_text().splitlines()) for file in beside) < 2200
    for file in modules():
        assert len(file.read_text().splitlines()) <= 400, file


def test_one_module_imports_vllm_and_few_names() -> None:
    users = {file.name for file in modules() if any(is_vllm(m) for m, _ in imports(file))}
    # engine.py names a type for mypy only.
    assert users == {"adapter.py", "engine.py"}
    names = {name or m for m, name in imports(PACKAGE / "engine/adapter.py") if is_vllm(m)}
    assert len(names) <= 15, names


def test_no_private_part_of_ray() -> None:
    for file in modules():
        for module, _ in imports(file):
            assert not (module.startswith("ray.") and "._" in module), f"{file}: {module}"


def test_no_catch_all_modules() -> None:
    assert not {"utils", "helpers", "common", "misc"} & {file.stem for file in modules()}
