"""Every command in docs/eks.md and kuberay/README.md is one that its program takes, as far as that
can be said without a cluster; what needs none is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config.cluster import Cluster
from tests.unit.command_lines import KUBECTL, kubectl_words, run, simple_commands

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("docs/eks.md", "kuberay/README.md")}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.S)

PENDING: set[str] = set()
"""What the pages name and is not here yet. Empty in the end: a test fails for what has come."""

VALUES = {
    **dict(re.findall(r"(\w+)=([\w.,-]+)", "\n".join(re.findall(r"export (.*)", TEXT)))),
    "ACCOUNT": "111122223333",
    "REPOSITORY": "111122223333.dkr.ecr.us-east-2.amazonaws.com/neuron-serve",
    "FS": "fs-0123456789abcdef0",
}
"""Of the variables in the files that the pages write."""

SUBCOMMANDS = {
    "helm": {"upgrade", "uninstall"},
    "kind": {"create cluster", "load docker-image", "delete cluster"},
    "docker": {"login"},
    "eksctl": {"create cluster", "create podidentityassociation", "delete cluster"},
    "git": {"revert"},
    "openssl": {"rand"},
    "aws": {
        "cloudformation delete-stack",
        "cloudformation deploy",
        "cloudformation describe-stacks",
        "ec2 authorize-security-group-ingress",
        "ec2 create-security-group",
        "ec2 delete-security-group",
        "ec2 delete-tags",
        "ec2 describe-capacity-block-offerings",
        "ec2 describe-capacity-reservations",
        "ec2 describe-instance-type-offerings",
        "ec2 describe-subnets",
        "ec2 describe-vpcs",
        "ec2 purchase-capacity-block",
        "ecr create-repository",
        "ecr delete-repository",
        "ecr describe-images",
        "ecr describe-repositories",
        "ecr get-login-password",
        "efs create-file-system",
        "efs create-mount-target",
        "efs delete-file-system",
        "efs delete-mount-target",
        "efs describe-file-systems",
        "efs describe-mount-targets",
        "eks describe-cluster",
        "iam create-policy",
        "iam delete-policy",
        "resourcegroupstaggingapi get-resources",
        "service-quotas get-service-quota",
        "service-quotas request-service-quota-increase",
        "sts get-caller-identity",
    },
}
"""Looked up by hand; a new one is added here after that."""
PLAIN = {
    "base64",
    "cat",
    "curl",
    "export",
    "kill",
    "mkdir",
    "printf",
    "read",
    "sed",
    "sleep",
    "[",
    "for",
}
"""Programs and words of the shell whose arguments are not looked at."""

RESOURCES = {
    *("pods", "pod", "job", "deployment", "nodes", "node", "pvc", "pdb", "ingress", "secret"),
    *("secrets", "serviceaccount", "networkpolicy", "storageclass", "endpointslices"),
    *("rayservice", "raycluster", "nodepools", "nodeclaims", "ec2nodeclasses"),
}
"""Types of Kubernetes, KubeRay and Karpenter that commands name."""

ARN = "arn:aws:acm:us-east-2:111122223333:certificate/0"
SETTINGS = [text.replace("ARN", ARN) for text in re.findall(r"`cluster: (\{.*?\})`", TEXT)]

LABELS_OF_OTHERS = {
    "alpha.eksctl.io/cluster-name",  # eksctl, on what it makes
    "elbv2.k8s.aws/cluster",  # load balancer controller, docs/guide/ingress/annotations.md
    "karpenter.sh/discovery",  # Karpenter's guide, on subnets and security groups
    "kubernetes.io/cluster",  # Karpenter and EKS, on instances and volumes
    "kubernetes.io/service-name",  # Kubernetes, on endpoint slices
    "ray.io/initializing-timeout",  # KubeRay; named because it is left out
    "storageclass.kubernetes.io/is-default-class",
}

HEREDOC = re.compile(r"^cat ((?:\S+ -)?) ?> (\S+) <<EOF\n(.*?\n)EOF$", re.M | re.S)
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def of_pages() -> Iterator[list[str]]:
    """All commands: of the blocks, and of the text between backticks."""
    for block in BLOCKS:
        yield from simple_commands(block)
    known = (*SUBCOMMANDS, "kubectl", "neuron-serve")
    for code in re.findall(r"(?<!`)`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.S)):
        # Two words name a command, three are meant to be run.
        if len(code.split()) > 2 and code.split()[0] in known:
            yield from simple_commands(code)


COMMANDS = list(of_pages())


def of(program: str) -> list[Any]:
    return [pytest.param(c, id=" ".join(c)[:70]) for c in COMMANDS if c[0] == program]


def is_pending(path: str) -> bool:
    return any(path == p or path.startswith(f"{p}/") for p in PENDING)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in which the pages' files are written and their configs rendered."""
    made = tmp_path_factory.mktemp("pages")
    for folder in ("kuberay", "configs"):
        shutil.copytree(ROOT / folder, made / folder)
    for block in BLOCKS:
        for first, name, body in HEREDOC.findall(block):
            before = (made / first.removesuffix(" -")).read_text() if first else ""
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(before + Template(body).substitute(VALUES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for _, *words in (c for c in COMMANDS if c[0] == "neuron-serve" and "CONFIG" not in c):
            if words[0] in ("check", "render"):
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, (words, result.output)
    return made


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_bash_parses_every_block(block: str) -> None:
    result = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_scanner_finds_what_a_shell_would_run() -> None:
    script = (
        'A="$(aws sts x)" # no\nfor s in $(kind y "a b"); do kubectl get \\\n  pods > f; done\n'
    )
    script += "until [ -e f ]; do sleep 1; done\nprintf %s '$(no); #' | kubectl apply -f - &\n"
    found = simple_commands(script)
    assert found == [
        ["aws", "sts", "x"],
        ["kind", "y", "a b"],
        ["for", "s", "in", "$(...)"],
        ["kubectl", "get", "pods"],
        ["[", "-e", "f", "]"],
        ["sleep", "1"],
        ["printf", "%s", "$(no); #"],
        ["kubectl", "apply", "-f", "-"],
    ]
    assert len(COMMANDS) > 100


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c)[:60])
def test_every_program_is_known(command: list[str]) -> None:
    program = command[0]
    if program in SUBCOMMANDS:
        wanted = SUBCOMMANDS[program]
        assert {" ".join(command[1:2]), " ".join(command[1:3])} & wanted, command
    elif program.startswith("./scripts/"):
        assert is_pending(program[2:]) or (ROOT / program).exists()
    else:
        assert program in PLAIN | {"kubectl", "neuron-serve"}, command


@pytest.mark.parametrize("command", of("neuron-serve"))
def test_neuron_serve_takes_it(
    command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    if " ".join(command[:2]) not in PENDING:
        parse([word.replace("DIR", str(place)) for word in command[1:]])


def parse(words: list[str]) -> None:
    """Raises what Typer raises for a command line that it does not take; runs nothing."""
    command: Any = get_command(app)
    context = command.context_class(command, info_name="neuron-serve")
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        context = command.context_class(command, info_name=name, parent=context)
    command.parse_args(context, list(words))


@needs_kubectl
@pytest.mark.parametrize("command", of("kubectl"))
def test_kubectl_takes_it(command: list[str]) -> None:
    verb, positional = kubectl_words(command[1:])
    if verb in ("get", "describe", "delete", "patch", "wait"):
        first = positional[0].split("/")[0] if positional else ""
        assert set(first.split(",") if first else ()) <= RESOURCES, command


def kustomized() -> list[str]:
    found = [c[c.index("-k") + 1] for c in COMMANDS if "-k" in c]
    assert len(found) > 10
    return sorted(set(found))


@needs_kubectl
@pytest.mark.parametrize("folder", kustomized())
def test_what_is_applied_can_be_built(folder: str, place: Path) -> None:
    text = (place / folder / "kustomization.yaml").read_text() if not is_pending(folder) else ""
    if is_pending(folder) or ("/components/" in text and is_pending("kuberay/components")):
        return
    objects = [thing for thing in yaml.safe_load_all(run(place, "kustomize", folder)) if thing]
    assert objects


@needs_kubectl
def test_an_overlay_of_ones_own_replaces_the_image(place: Path) -> None:
    made = yaml.safe_load((place / "my/kustomization.yaml").read_text())
    made["resources"] = ["../kuberay/overlays/llama3-8b-inf2"]
    del made["components"]
    (place / "images").mkdir()
    (place / "images/kustomization.yaml").write_text(yaml.dump(made))
    images = set(re.findall(r" image: (.*):", run(place, "kustomize", "images")))
    assert images == {VALUES["REPOSITORY"]}


@needs_kubectl
def test_secrets_are_those_that_the_pods_read(place: Path) -> None:
    for name in ("keys.yaml", "webui-secret-key"):
        (place / name).write_text("x")
    made: dict[str, set[str]] = {}
    for command in (c for c in COMMANDS if c[1:4] == ["create", "secret", "generic"]):
        words = [word for word in command[1:] if not word.startswith(("--dry-run", "-o", "yaml"))]
        secret = yaml.safe_load(run(place, *words, "--dry-run=client", "-o", "yaml", stdin="x"))
        made.setdefault(secret["metadata"]["name"], set()).update(secret["data"])
    config = yaml.safe_load((place / "my/chat.yaml").read_text())
    keys = Path(config["applications"][0]["args"]["access"]["keys"]).name
    assert made[str(Cluster().hugging_face_secret)] == {"token"}
    assert made[Cluster().keys_secret] == {keys}
    assert made["open-webui"] == {"openai-api-key", "webui-secret-key"}
    assert len(made) == 3


def test_no_secret_is_a_word_of_a_command() -> None:
    assert "--from-literal" not in TEXT
    assert "--password " not in TEXT


def test_the_service_is_the_one_that_the_pages_speak_of(place: Path) -> None:
    service = yaml.safe_load((place / "kuberay/overlays/chat/rayservice.yaml").read_text())
    assert service["metadata"]["name"] == "chat"
    assert (place / "kuberay/overlays/chat/compile/job.yaml").exists()
    assert service["spec"]["upgradeStrategy"]["type"] == "None"
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    model = config["applications"][0]["args"]["model"]["id"]
    asked = set(re.findall(r'"model": "([^"]+)"', TEXT))
    assert asked == {model, "neuron-serve/demo"}


def test_storage_classes_have_the_name_that_the_claim_asks_for(place: Path) -> None:
    made = list(yaml.safe_load_all((place / "storage-classes.yaml").read_text()))
    assert [thing["kind"] for thing in made] == ["StorageClass"] * 2
    assert Cluster().storage.storage_class in [thing["metadata"]["name"] for thing in made]


def test_the_cluster_is_new_enough_and_karpenter_finds_it(place: Path) -> None:
    made = yaml.safe_load((place / "cluster.yaml").read_text())
    assert tuple(int(part) for part in made["metadata"]["version"].split(".")) >= (1, 34)
    assert made["metadata"]["tags"] == {"karpenter.sh/discovery": VALUES["CLUSTER"]}
    assert f"KarpenterNodeRole-{VALUES['CLUSTER']}" in yaml.dump(made["iamIdentityMappings"])


@pytest.mark.parametrize("command", [c for c in of("helm") if c.values[0][1] == "upgrade"])
def test_charts_are_pinned(command: list[str]) -> None:
    version = Template(command[command.index("--version") + 1]).substitute(VALUES)
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", version)
    release = next(word for word in command[2:] if not word.startswith("-"))
    said = {"kuberay-operator": "KubeRay operator", "neuron-helm-chart": "Neuron chart"}
    said["aws-load-balancer-controller"] = "AWS load balancer controller"
    assert f"| {said.get(release, '')}" in TEXT
    if release in said:
        assert f"| {said[release]} {version}" in TEXT


@pytest.mark.parametrize(
    "path",
    sorted(
        set(
            re.findall(
                r"(?<![\w/.$-])(?:kuberay|configs|scripts|docs|serve_app)/[\w./*-]*\w\*?", TEXT
            )
        )
    ),
)
def test_paths_exist(path: str, place: Path) -> None:
    pattern = path.replace("NAME", "*")
    there = [*ROOT.glob(pattern), *place.glob(pattern)]
    assert there or is_pending(path), path


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)", PAGES[page])
    assert targets
    for target in targets:
        path = (ROOT / page).parent.joinpath(target).resolve()
        assert path.exists() or is_pending(str(path.relative_to(ROOT))), target


def test_labels_and_annotations_exist() -> None:
    files = [*(ROOT / "serve_app/manifests").rglob("*.py"), *(ROOT / "kuberay").rglob("*.yaml")]
    written = "\n".join(file.read_text() for file in files)
    domain = r"neuron-serve|(?:[a-z0-9-]+\.)+(?:sh|io|com|k8s\.aws)"
    text = re.sub(r"https?://\S+|apiVersion: .*|annotations\.", " ", TEXT)
    named = set(re.findall(rf"(?<![\w/.$-])((?:{domain})/[a-z0-9][\w-]*\w)", text))
    assert {"neuron-serve/startup-budget", "app.kubernetes.io/instance"} <= named
    strange = {name for name in named if not re.search(rf"{re.escape(name)}(?!\w)", written)}
    assert strange <= LABELS_OF_OTHERS


def test_settings_of_cluster_exist() -> None:
    named = set(re.findall(r"`cluster\.([a-z_.]+)`", TEXT))
    assert len(named) >= 8
    for path in named:
        model: Any = Cluster
        for name in path.split("."):
            field = model.model_fields[name]
            inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
            model = next((a for a in inner if hasattr(a, "model_fields")), None)
    for text in SETTINGS:
        Cluster.model_validate(yaml.safe_load(text))


def test_the_load_balancer_is_rendered(place: Path) -> None:
    if is_pending("serve_app/manifests/ingress.py"):
        return
    (text,) = (text for text in SETTINGS if "ingress" in text)
    config = yaml.safe_load((place / "my/chat.yaml").read_text())
    config["cluster"] |= yaml.safe_load(text)
    (place / "my/ingress.yaml").write_text(yaml.dump(config))
    result = CliRunner().invoke(app, ["render", str(place / "my/ingress.yaml")])
    assert "kind: Ingress" in result.stdout


CHAPTERS = (
    "cluster",
    "add-ons",
    "secrets",
    "apply",
    "watch",
    "port-forward",
    "Open WebUI",
    "upgrade",
    "roll back",
    "scale to zero",
    "clean up",
)


@pytest.mark.parametrize("words", CHAPTERS)
def test_every_chapter_is_there(words: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES["docs/eks.md"], flags=re.S)
    headings = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert any(words.lower() in heading.lower() for heading in headings)


def test_what_has_come_is_no_longer_pending() -> None:
    commands: Any = get_command(app)
    for name in PENDING:
        program, _, command = name.partition(" ")
        here = command in commands.commands if command else (ROOT / program).exists()
        assert not here, f"{name} is here: take it out of PENDING"


def test_the_readme_leads_there() -> None:
    assert "(docs/eks.md)" in (ROOT / "README.md").read_text()
    assert "(../docs/eks.md)" in PAGES["kuberay/README.md"]
