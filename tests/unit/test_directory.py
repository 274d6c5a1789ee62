"""Who serves what: a pure function of routes, reports, declared names and weights."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.front_door import (
    NOT_RESPONDING,
    READY,
    STALE_S,
    Directory,
    Loading,
    Report,
    Target,
    Unknown,
)

ROUTES = {"/": "front-door", "/llama": "llama", "/qwen": "qwen"}


def card(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 128, **fields}


def ready(application: str, *names: str, age_s: float = 0.0, replica: str = "r1") -> Report:
    cards = tuple(card(name, root=f"/models/{application}") for name in names)
    return Report(application, replica, READY, "", 60.0, cards, age_s)


def starting(
    application: str,
    phase: str = "weights",
    elapsed_s: float = 42.0,
    age_s: float = 0.0,
    replica: str = "r1",
) -> Report:
    return Report(application, replica, phase, "1.2 of 15 GiB", elapsed_s, (), age_s)


def directory(
    *reports: Report,
    declared: dict[str, tuple[str, ...]] | None = None,
    weights: dict[str, dict[str, float]] | None = None,
    routes: dict[str, str] = ROUTES,
) -> Directory:
    return Directory.build(routes, reports, declared or {}, weights or {})


def lines(built: Directory) -> list[tuple[str, float, str]]:
    found = []
    for line in built.table().splitlines():
        digest, weight, prefix = line.split(" ")
        found.append((digest, float(weight), prefix))
    return found


def digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()


BOTH = (ready("llama", "llama", "chat"), ready("qwen", "qwen", "chat"))


def test_each_name_goes_to_its_application() -> None:
    built = directory(*BOTH)
    assert built.target("llama", 0.5) == Target("llama", "/llama")
    assert built.target("qwen", 0.5) == Target("qwen", "/qwen")
    assert built.names() == ("chat", "llama", "qwen")


def test_cards_are_merged_and_unchanged() -> None:
    built = directory(*reversed(BOTH))
    assert [each["id"] for each in built.cards()] == ["llama", "chat", "qwen"]
    assert built.cards()[1] == card("chat", root="/models/llama")


def test_several_replicas_are_one_application() -> None:
    built = directory(ready("llama", "a"), ready("llama", "a", "b", replica="r2"))
    assert [each["id"] for each in built.cards()] == ["a", "b"]
    assert len(lines(built)) == 2


def test_one_ready_replica_is_enough() -> None:
    built = directory(starting("llama"), ready("llama", "a", replica="r2"))
    assert built.target("a", 0.0) == Target("llama", "/llama")


def test_a_loading_model_is_known_by_name() -> None:
    built = directory(starting("llama"), declared={"llama": ("llama", "chat")})
    assert built.target("chat", 0.0) == Loading("llama", "weights", "1.2 of 15 GiB", 42.0)
    assert built.names() == ("chat", "llama")
    assert (built.cards(), built.table()) == ([], "")


def test_of_several_replicas_that_start_the_first_is_shown() -> None:
    reports = [
        starting("llama", "download", 3.0),
        starting("llama", "engine", 40.0, age_s=5.0, replica="r2"),
        starting("llama", "warm-up", 99.0, age_s=STALE_S + 1, replica="r3"),
    ]
    found = directory(*reports, declared={"llama": ("llama",)}).target("llama", 0.0)
    assert found == Loading("llama", "engine", "1.2 of 15 GiB", 45.0)


def test_a_new_name_of_a_running_application_loads() -> None:
    """As an application is updated: its old replica does not know the new name."""
    reports = [ready("llama", "old"), starting("llama", "engine", replica="r2")]
    built = directory(*reports, declared={"llama": ("new",)})
    assert built.target("old", 0.0) == Target("llama", "/llama")
    assert isinstance(found := built.target("new", 0.0), Loading)
    assert found.phase == "engine"


@pytest.mark.parametrize(("age_s", "ok"), [(0.0, True), (STALE_S, True), (STALE_S + 0.1, False)])
def test_a_replica_that_is_silent_is_not_ready(age_s: float, ok: bool) -> None:
    built = directory(ready("llama", "a", age_s=age_s), declared={"llama": ("a",)})
    if ok:
        assert built.target("a", 0.0) == Target("llama", "/llama")
    else:
        assert built.target("a", 0.0) == Loading("llama", NOT_RESPONDING, "", age_s)
        assert (built.cards(), built.table()) == ([], "")


def test_one_that_starts_is_nearer_than_one_that_is_silent() -> None:
    reports = [starting("llama", age_s=99.0), starting("qwen", "engine")]
    built = directory(*reports, declared={"llama": ("chat",), "qwen": ("chat",)})
    assert isinstance(found := built.target("chat", 0.0), Loading)
    assert (found.application, found.phase) == ("qwen", "engine")


def test_ready_without_a_route_is_not_ready() -> None:
    built = directory(ready("new", "n"), declared={"new": ("n",)})
    assert isinstance(built.target("n", 0.0), Loading)
    assert built.table() == ""


def test_what_has_no_replica_is_known_by_what_it_declared() -> None:
    built = directory(ready("llama", "a"), declared={"qwen": ("qwen",), "deleted": ("gone",)})
    assert built.target("qwen", 0.0) == Loading("qwen", "no replica", "", 0.0)
    assert built.target("gone", 0.0) == Unknown(("a", "qwen"))
    assert [card["id"] for card in built.cards()] == ["a"]


def test_the_front_door_is_not_there_whatever_it_says() -> None:
    built = directory(ready("front-door", "loop"), declared={"front-door": ("loop",)})
    assert built.target("loop", 0.0) == Unknown(())
    assert built.table() == ""


TRICKS = ["../qwen", "/llama/../qwen", "%2e%2e/qwen", "%6clama", "llama/", "LLAMA", " llama", ""]


@pytest.mark.parametrize("name", [*TRICKS, "llama\x00", "llama\n", "\ud800"])
def test_a_name_is_exact(name: str) -> None:
    assert isinstance(directory(*BOTH).target(name, 0.0), Unknown)


@pytest.mark.parametrize("name", [*TRICKS, "org/model.v1", "模型", "a b", "\ud800"])
def test_any_name_may_be_served(name: str) -> None:
    built = directory(ready("llama", name))
    assert built.target(name, 0.0) == Target("llama", "/llama")
    ((hashed, weight, prefix),) = lines(built)
    assert hashed == sha256(name.encode(errors="surrogatepass")).hexdigest()
    assert (weight, prefix) == (1.0, "/llama")


def drawn(built: Directory, name: str, times: int = 4000) -> dict[str, float]:
    rng = random.Random(7)
    seen = Counter()
    for _ in range(times):
        found = built.target(name, rng.random())
        assert isinstance(found, Target)
        seen[found.application] += 1
    return {application: count / times for application, count in seen.items()}


def test_equal_shares_by_default() -> None:
    assert drawn(directory(*BOTH), "chat") == pytest.approx({"llama": 0.5, "qwen": 0.5}, abs=0.03)


def test_weights() -> None:
    built = directory(*BOTH, weights={"chat": {"llama": 9, "qwen": 1}})
    assert drawn(built, "chat") == pytest.approx({"llama": 0.9, "qwen": 0.1}, abs=0.03)
    assert drawn(built, "qwen", 10) == {"qwen": 1.0}
    assert built.target("chat", 0.899) == Target("llama", "/llama")
    assert built.target("chat", 0.901) == Target("qwen", "/qwen")


@pytest.mark.parametrize("shares", [{"llama": 1.0, "qwen": 0.0}, {"llama": 0.2}])
def test_an_application_without_a_share_gets_nothing(shares: dict[str, float]) -> None:
    built = directory(*BOTH, weights={"chat": shares})
    assert drawn(built, "chat", 500) == {"llama": 1.0}
    assert (digest("chat"), 1.0, "/llama") in lines(built)
    assert "/qwen" not in {prefix for hashed, _, prefix in lines(built) if hashed == digest("chat")}


def test_but_it_takes_over() -> None:
    reports = (starting("llama"), ready("qwen", "chat"))
    built = directory(*reports, weights={"chat": {"llama": 1.0}}, declared={"llama": ("chat",)})
    assert drawn(built, "chat", 10) == {"qwen": 1.0}
    assert lines(built) == [(digest("chat"), 1.0, "/qwen")]


def test_the_table() -> None:
    built = directory(*BOTH, weights={"chat": {"llama": 3, "qwen": 1}})
    expected = [
        f"{digest('llama')} 1.000000 /llama",
        f"{digest('qwen')} 1.000000 /qwen",
        f"{digest('chat')} 0.750000 /llama",
        f"{digest('chat')} 0.250000 /qwen",
    ]
    assert built.table() == "".join(f"{line}\n" for line in sorted(expected))


def test_prefixes_are_fit_for_a_url() -> None:
    routes = {"/a b\n/": "llama", "/é%": "qwen"}
    built = directory(*BOTH, routes=routes)
    assert built.prefixes("chat") == ["/a%20b%0A", "/%C3%A9%25"]
    assert len(lines(built)) == 4


def test_the_only_model() -> None:
    assert directory().only() is None
    assert directory(ready("llama", "own", "alias")).only() == "own"
    loading = directory(starting("llama"), declared={"llama": ("own", "alias")})
    assert loading.only() == "own"
    assert directory(*BOTH).only() is None
    assert directory(ready("llama", "a"), ready("qwen", "a")).only() == "a"
    assert (
        directory(ready("llama", "a"), starting("qwen"), declared={"qwen": ("b",)}).only() is None
    )


@given(
    draw=st.floats(0, 1, exclude_max=True),
    weights=st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.floats(0, 1e6)),
    up=st.sets(st.sampled_from(["a", "b", "c"])),
)
def test_who_is_drawn_serves_it(draw: float, weights: dict[str, float], up: set[str]) -> None:
    routes = {f"/{name}": name for name in "abc"}
    reports = [ready(name, "m") if name in up else starting(name) for name in "abc"]
    declared = dict.fromkeys("abc", ("m",))
    built = directory(*reports, routes=routes, declared=declared, weights={"m": weights})
    found = built.target("m", draw)
    if not up:
        assert isinstance(found, Loading)
        return
    assert isinstance(found, Target)
    assert found.application in up
    if any(weights.get(name, 0) > 0 for name in up):
        assert weights[found.application] > 0
    assert sum(weight for _, weight, _ in lines(built)) == pytest.approx(1.0, abs=1e-5)
