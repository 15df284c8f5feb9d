"""Health of containers, from the states that an engine reports."""

import json
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest

from attestkit.errors import BackendError, NotFoundError
from attestkit.serve.docker import engine as containers
from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.docker.responses import ContainerState
from attestkit.serve.health.monitor import (
    HEALTHY,
    HealthMonitor,
    HealthProblem,
    HealthVerdict,
    appraise_containers,
    check_docker,
    unhealthy,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.docker.engine import NO_RESPONSE, VERSION, Engine, with_engine
from tests.vectors import load, needs_shared

NONE_CREATED = unhealthy("<compose>", "no container has been created yet")
NONE_CHECKED = unhealthy("<compose>", "no container declares a healthcheck")


def inspected(name: str, health: str | None, state: str | None) -> dict[str, Any]:
    """Return a container as an engine describes it."""
    found = {} if health is None else {"Health": {"Status": health, "FailingStreak": 0}}
    status = {} if state is None else {"Status": state}
    return {"Id": f"1d{name}", "Name": f"/{name}", "State": {**status, **found}, "Config": {}}


def appraise(*found: dict[str, Any]) -> HealthVerdict:
    """Return the verdict on containers."""
    return appraise_containers(msgspec.convert(list(found), list[ContainerState]))


@needs_shared
@pytest.mark.parametrize("case", load("guest_v1.json").get("containers", []))
def test_containers_match_vector(case: dict[str, Any]) -> None:
    """The states give the verdict of the vector."""
    verdict = appraise(*(inspected(**one) for one in case["containers"]))
    assert verdict.healthy == case["healthy"]
    if "note" in case:  # the vector has no text
        assert verdict == NONE_CHECKED
    else:
        assert [entry._asdict() for entry in verdict.unhealthy] == case["unhealthy"]


@every_case("state", ["created", "paused", "restarting", "removing", "exited", "dead"])
@every_case("health", ["healthy", "starting", "unhealthy", "new"])
def test_container_that_is_not_running_is_unhealthy(state: str, health: str) -> None:
    """Its last health is in the status."""
    assert appraise(inspected("web", health, state)) == unhealthy(
        "web", f"{state} (last health check: {health})"
    )


@pytest.mark.parametrize("state", ["running", "", None])
def test_running_container_has_the_status_of_its_health(state: str | None) -> None:
    """An unknown state is considered running."""
    assert appraise(inspected("web", "healthy", state)) == HEALTHY
    for health in ("starting", "unhealthy", "new"):
        assert appraise(inspected("web", health, state)) == unhealthy("web", health)


def test_containers_without_health_check_are_not_appraised() -> None:
    """They do not make the app unhealthy, but one container has to declare a health check."""
    others: list[dict[str, Any]] = [
        inspected("a", None, "exited"),
        inspected("b", "none", "running"),
        inspected("c", "", "dead"),
        {"Id": "d", "State": None},
        {"Id": "e", "State": {"Health": None}},
        {"Id": "f"},
    ]
    assert appraise() == NONE_CREATED
    assert appraise(*others) == NONE_CHECKED
    assert appraise(*others, inspected("web", "healthy", "running")) == HEALTHY
    assert appraise(*others, inspected("web", "starting", "running")) == unhealthy(
        "web", "starting"
    )


def test_container_texts_are_safe() -> None:
    """Names and states are bounded lines; a container without a name has its id."""
    state = {"Status": "running", "Health": {"Status": "bad\n\u202e" + "x" * 300}}
    [entry] = appraise({"Id": "c0ffee", "State": state}).unhealthy
    assert entry == HealthProblem("c0ffee", "bad  " + "x" * 251 + "... (truncated)")
    assert appraise({"Id": "1", "Name": "/\x1b", "State": state}).unhealthy[0].name == " "


@with_engine
async def test_check_docker_inspects_compose_containers(engine: Engine) -> None:
    """The engine lists the containers with the label, and each one is inspected by its id."""
    listed = {"Image": "i", "Status": "Up", "State": "running"}
    found = [inspected("web", "healthy", "running"), inspected("db", "starting", "running")]
    engine.answers["/containers/json"] = 200, [{**listed, "Id": one["Id"]} for one in found]
    for one in found:
        engine.answers[f"/containers/{one['Id']}/json"] = 200, one
    assert await check_docker(ContainerEngine(engine.address)) == unhealthy("db", "starting")
    assert engine.asked[2:] == ["/v1.45/containers/1dweb/json", "/v1.45/containers/1ddb/json"]
    path, _, query = engine.asked[1].partition("?")
    assert (engine.asked[0], path) == ("/version", "/v1.45/containers/json")
    values = parse_qs(query)
    assert values.pop("all") == ["1"]
    assert json.loads(values["filters"][0]) == {"label": ["com.docker.compose.project"]}
    engine.answers["/containers/json"] = 200, []
    assert await check_docker(ContainerEngine(engine.address)) == NONE_CREATED


@with_engine
async def test_check_docker_failures(engine: Engine, *, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed container, a hostile id and too many containers are errors, not verdicts."""
    listed = {"Id": "1", "Image": "i", "Status": "Up", "State": "running"}
    docker = ContainerEngine(engine.address)
    engine.answers["/containers/json"] = 200, [listed]
    with raises(NotFoundError, "container"):
        await check_docker(docker)
    engine.answers["/containers/1/json"] = 200, {"Id": "1", "State": 5}
    with raises(BackendError, "malformed_response"):
        await check_docker(docker)
    engine.answers["/containers/json"] = 200, [{**listed, "Id": "../version"}]
    with raises(BackendError, "malformed_response"):
        await check_docker(docker)
    monkeypatch.setattr(containers, "MAX_INSPECTED", 1)
    engine.answers["/containers/json"] = 200, [listed, listed]
    with raises(BackendError, "too_large"):
        await check_docker(docker)
    assert "/v1.45/version" not in engine.asked
    with raises(BackendError, "cannot_connect"):
        await check_docker(ContainerEngine("/nowhere/docker.sock"))


@with_engine
async def test_silent_engine_is_a_failure_in_bounded_time(engine: Engine) -> None:
    """An engine that accepts connections and never answers is a failed check."""
    engine.answers["/version"] = NO_RESPONSE
    check = partial(check_docker, ContainerEngine(engine.address))
    monitor = HealthMonitor(check, seconds=0.05)
    for _ in range(3):
        await monitor.refresh()
    assert monitor.verdict == (False, (), "health refresh timed out after 0.05s")
    engine.answers["/version"] = 200, VERSION
    engine.answers["/containers/json"] = 200, []
    monitor = HealthMonitor(check)
    await monitor.refresh()
    assert monitor.verdict == NONE_CREATED
