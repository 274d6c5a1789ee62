"""The whole check of a Neuron configuration, as `neuron-serve check` does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import Severity, load, parse_args
from serve_app.preflight import check_application, check_document, memory_of

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def errors(
    instance: str,
    model: str = "meta-llama/Llama-3.1-8B-Instruct",
    given: dict[str, Any] | None = None,
    backend: str = "nxdi",
    sdk: str | None = None,
    **engine: Any,
) -> set[str]:
    """Ids of the rules that reject."""
    engine = {
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "max_num_seqs": 4,
        "enable_prefix_caching": False,
        **engine,
    }
    if given is not None:
        key = "override_neuron_config" if backend == "nxdi" else "neuron_config"
        engine["additional_config"] = {key: given}
    args = {
        "backend": backend,
        "instance": instance,
        "model": {"id": model},
        "engine": engine,
        "stack": {"sdk": sdk} if sdk else {},
    }
    found = check_application(parse_args(args), {})
    assert all(finding.mend for finding in found if finding.severity is Severity.ERROR)
    return {finding.rule for finding in found if finding.severity is Severity.ERROR}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_accepted(config: Path) -> None:
    document = load(config)
    found = check_document(document, {})
    assert [f for f in found if f.severity is Severity.ERROR] == []
    for _, app in document.applications():
        estimate = memory_of(app.args)
        assert (estimate is None) == (app.args.backend == "cpu")
        assert estimate is None or 0 < estimate.total < estimate.available


def test_a_plain_config_has_no_errors() -> None:
    assert errors("inf2.8xlarge") == set()


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ({"instance": "inf2.48xlarge", "tensor_parallel_size": 16}, "tp-degree"),
        ({"instance": "inf2.24xlarge", "tensor_parallel_size": 12}, "tp-degree"),
        (
            {
                "instance": "inf2.24xlarge",
                "model": "meta-llama/Llama-3.1-70B-Instruct",
                "tensor_parallel_size": 8,
            },
            "memory-device",
        ),
        ({"instance": "inf2.8xlarge", "backend": "neuron"}, "stack-family"),
        ({"instance": "inf2.8xlarge", "sdk": "2.29"}, "stack-family"),
    ],
)
def test_well_known_mistakes(case: dict[str, Any], rule: str) -> None:
    assert rule in errors(**case)


@pytest.mark.parametrize(
    "case",
    [
        {
            "instance": "inf2.8xlarge",
            "additional_config": {"override-neuron-config": {"enable_bucketing": True}},
        },
        {
            "instance": "trn2.48xlarge",
            "model": "Qwen/Qwen3-8B",
            "sdk": "2.27",
            "given": {"fused_qkv": True, "qkv_kernel_enabled": True},
        },
        {"instance": "inf2.8xlarge", "given": {"seq_len": 2048}},
        {
            "instance": "inf2.8xlarge",
            "given": {"enable_bucketing": True, "token_generation_buckets": [128, 8192]},
        },
        {
            "instance": "inf2.8xlarge",
            "given": {"enable_bucketing": True, "token_generation_buckets": [128, 2048]},
        },
        {"instance": "inf2.8xlarge", "enable_prefix_caching": True},
    ],
    ids=["hyphens", "qwen3-kernels", "seq-len", "bucket-beyond", "bucket-short", "no-block-size"],
)
def test_other_well_known_mistakes(case: dict[str, Any]) -> None:
    assert len(errors(**case)) >= 1


def test_five_mistakes_show_five_findings() -> None:
    found = errors(
        "inf2.48xlarge",
        tensor_parallel_size=16,
        enable_prefix_caching=True,
        pipeline_parallel_size=2,
        given={"seq_len": 2048, "quantized": True, "quantization_dtype": "fp9"},
    )
    assert len(found) >= 5


def test_lines_lead_to_the_mistake(tmp_path: Path) -> None:
    text = (ROOT / "configs/llama3-70b-inf2-48xlarge.yaml").read_text()
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("tensor_parallel_size: 24", "tensor_parallel_size: 16"))
    (finding,) = [f for f in check_document(load(path), {}) if f.rule == "tp-degree"]
    assert "tensor_parallel_size: 16" in path.read_text().splitlines()[(finding.line or 0) - 1]


def test_a_model_that_nobody_knows(tmp_path: Path) -> None:
    args = {"instance": "inf2.8xlarge", "model": {"id": "org/none"}, "engine": {"max_num_seqs": 1}}
    found = check_application(parse_args(args), {})
    assert "model-facts" in {f.rule for f in found if f.severity is Severity.WARNING}
    facts = tmp_path / "config.json"
    facts.write_text(json.dumps({"model_type": "llama"}))
    found = check_application(parse_args(args), {}, facts)
    (missing,) = [f for f in found if f.rule == "model-facts"]
    assert missing.severity is Severity.ERROR
    assert "hidden_size" in missing.message or "num_" in missing.message


def test_the_rules_page_is_current() -> None:
    command = [sys.executable, "-m", "serve_app", "rules", "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "docs/rules.md").read_text() == done.stdout


def test_no_ray_torch_or_vllm_for_a_check() -> None:
    code = (
        "import sys; from serve_app.config import load; from serve_app.preflight import *;"
        "check_document(load('configs/llama3-8b-inf2.yaml'));"
        "print({'ray', 'torch', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
