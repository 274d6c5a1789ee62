"""Open WebUI in a real browser, against the session's real stack.

The packages come from `./scripts/openwebui.sh --install-only`, the browser from Debian's
`chromium`; without them these tests are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.manifests.components import open_webui
from tests.serving.conftest import HTTP, MODEL, Stack, free_port, start

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/openwebui.sh"
pytestmark = pytest.mark.timeout(600)  # with the stack's start
VENV = Path(os.environ.get("NEURON_SERVE_WEBUI_VENV", ROOT / ".venv-openwebui"))
INSTALL_S = 240
START_S = 240
WAIT_MS = 60_000
BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUESTION = "What is TTFT?"
ANSWER = (
    "TTFT means time to first token. It is the time from sending a request to receiving the "
    "first token of the answer."
)
LONG = {
    "id": "long-story",
    "name": "Long story",
    "base_model_id": MODEL,
    "meta": {},
    "params": {"max_tokens": 900, "custom_params": {"ignore_eos": "true"}},
    "access_grants": [],
}
# Clicks Stop when the answer has begun: in the page, as the story may be over before a busy
# machine has carried a click from here to there.
STOP = """() => { window.stopped = new Promise(resolve => {
  const watch = new MutationObserver(() => {
    const stop = document.querySelector('button[aria-label="Stop"]');
    const answer = document.querySelector('.chat-assistant')?.innerText ?? '';
    if (!stop || answer.length < 40) return;
    watch.disconnect();
    stop.click();
    resolve(Date.now() / 1000);
  });
  watch.observe(document.body, {childList: true, subtree: true, characterData: true});
}); }"""


def setting_lines() -> dict[str, str]:
    """What the script sets: NAME=value in its two lists, without comments and quotes."""
    lists = re.findall(r"^settings\+?=\((.*?)^\)", SCRIPT.read_text(), re.M | re.S)
    words = [line.strip().strip("'") for text in lists for line in text.splitlines()]
    return dict(word.split("=", 1) for word in words if word and not word.startswith("#"))


def test_the_settings_are_those_of_the_manifest() -> None:
    """What the two cannot share: where things are, and the slim mode without a network."""
    manifest = {e["name"]: e.get("value") for e in open_webui._environment()}
    script = setting_lines()
    for name in ("USE_SLIM_DOCKER", "OFFLINE_MODE", "HF_HUB_OFFLINE", "ENABLE_PERSISTENT_CONFIG"):
        script.pop(name)
    for name in (
        "SERVE_SERVICE",
        "OPENAI_API_BASE_URL",
        "OPENAI_API_KEY",
        "WEBUI_SECRET_KEY",
        "DATA_DIR",
        "STATIC_DIR",
        "HOME",
    ):
        manifest.pop(name)
    assert script == manifest


def refused(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_errors_are_one_line_with_the_mend() -> None:
    port = str(free_port())
    nobody = refused("--url", f"http://127.0.0.1:{port}/v1", "--port", str(free_port()))
    assert "Connection refused" in nobody
    assert "-> start it first: neuron-serve run configs/local-cpu.yaml" in nobody
    assert "needs a value" in refused("--url")
    assert "is not a number" in refused("--port", "x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused("--port", str(taken.getsockname()[1]))
    assert "Address already in use -> choose another --port" in said
    assert "needs Python 3.11 or 3.12" in refused(PYTHON="no-such-python")


@pytest.fixture(scope="module")
def webui(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The script, on a free port, with no account yet."""
    if not VENV.exists():
        pytest.skip("no Open WebUI here -> ./scripts/openwebui.sh --install-only")
    # scripts/test.sh may be installing it still.
    subprocess.run([SCRIPT, "--install-only"], check=True, timeout=INSTALL_S)
    directory = tmp_path_factory.mktemp("webui")
    port = free_port()
    os.environ["DATA_DIR"] = str(directory / "data")
    try:
        command = [str(SCRIPT), "--url", f"{stack.url}/v1", "--port", str(port)]
        running = start(command, port, directory / "log")
    finally:
        del os.environ["DATA_DIR"]
    try:
        running.wait_until(lambda: "ready in" in running.log.read_text(), START_S)
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module")
def page(webui: Stack) -> Iterator[Any]:
    """A browser's page, signed up as the first account."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no browser here -> apt-get install --no-install-recommends chromium")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=BROWSER)
        view = {"width": 1280, "height": 800}
        page = browser.new_context(viewport=view, color_scheme="light").new_page()
        page.set_default_timeout(WAIT_MS)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(webui.url)
        page.get_by_role("button", name="Get started").click()
        page.get_by_placeholder("Enter Your Full Name").fill("Ada")
        page.get_by_placeholder("Enter Your Email").fill("ada@example.com")
        page.get_by_placeholder("Enter Your Password").fill("correct horse battery")
        page.get_by_role("button", name="Create Admin Account").click()
        page.get_by_role("button", name="Okay, Let's Go!").click()
        made = page.evaluate(
            """async model => (await fetch('/api/v1/models/create', {
                method: 'POST',
                headers: {'content-type': 'application/json',
                          authorization: `Bearer ${localStorage.token}`},
                body: JSON.stringify(model)})).status""",
            LONG,
        )
        assert made == 200
        yield page
        browser.close()
        # The page needs nothing from outside.
        outside = [url for url in asked if not url.startswith((webui.url, "data:", "blob:"))]
        assert not outside


def say(page: Any, text: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def picture(page: Any, name: str) -> None:
    """Where the pictures of docs/openwebui.md come from."""
    if folder := os.environ.get("NEURON_SERVE_PICTURES"):
        page.wait_for_timeout(1000)
        page.screenshot(path=f"{folder}/openwebui-{name}.png")


def test_pick_the_model_and_talk(stack: Stack, page: Any) -> None:
    page.goto(page.url)
    page.locator("#model-selector-model-button").click()
    page.get_by_role("option", name="Select Long story model").wait_for()
    picture(page, "models")
    page.get_by_role("option", name=f"Select {MODEL} model").click()
    prompts = stack.metric("vllm:prompt_tokens_total")
    say(page, QUESTION)
    answers = page.locator(".chat-assistant")
    answers.filter(has_text=ANSWER).wait_for()
    # No title, tags, follow-ups, and no tools in the prompt: one short request (and probes).
    assert stack.metric("vllm:prompt_tokens_total") - prompts < 100
    say(page, "What is vLLM?")
    answers.nth(1).filter(has_text="vLLM is the inference engine.").wait_for()
    assert answers.nth(0).inner_text() == ANSWER
    picture(page, "chat")


def test_the_stop_button_frees_the_engine(stack: Stack, webui: Stack, page: Any) -> None:
    """Idle within two seconds of the click, long before all 900 tokens are made.

    Several tries, as in test_disconnect: a busy machine may look late.
    """
    seen = []
    for _ in range(5):
        page.goto(f"{webui.url}/?models={LONG['id']}")
        page.locator("#chat-input").wait_for()
        page.evaluate(STOP)
        before = stack.metric("vllm:generation_tokens_total")
        say(page, "Tell me a long story about neuron-serve.")
        clicked = page.evaluate("window.stopped")
        while stack.metric("vllm:num_requests_running"):
            assert time.time() - clicked < 30
        seconds = time.time() - clicked
        made = stack.metric("vllm:generation_tokens_total") - before
        seen.append((round(seconds, 1), made))
        if seconds < 2.0 and 1 < made < 800:
            break
    else:
        raise AssertionError(f"the engine went on after Stop: {seen} (s, tokens)")
    page.get_by_role("button", name="Stop").wait_for(state="detached")
    assert page.locator(".chat-assistant").inner_text().startswith("Once upon a time")
    picture(page, "stopped")


def test_ctrl_c_leaves_nothing(webui: Stack, page: Any) -> None:
    """Last in this file. The browser still holds its connection."""
    assert (webui.log.parent / "data/secret-key").stat().st_mode & 0o777 == 0o600
    tree = webui.tree()
    begin = time.monotonic()
    os.killpg(webui.process.pid, signal.SIGINT)
    assert webui.process.wait(30) == 130
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive
    assert time.monotonic() - begin < 20
    with pytest.raises(Exception, match="refused"):
        HTTP.get(webui.url)
