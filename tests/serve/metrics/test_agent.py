"""`/metrics`: the agent's families in the agent's format, and attestkit's families."""

import asyncio
import re
import shutil
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from attestkit import _native
from attestkit.serve import listener_apps as pages
from attestkit.serve.counters import BOUNDS
from attestkit.serve.http.views import ViewRequest
from tests.serve.asgi import Client
from tests.serve.client import call, get
from tests.serve.docker.engine import run_with_timeout
from tests.serve.guests import Blocking, Broken, GuestClient, MakeGuest
from tests.serve.server import Server, run_program, running_server

PROMTOOL: Final = shutil.which("promtool")
PUBLIC: Final = {"public_sysinfo": True}
# promtool reports these names, which are the agent's and must not change.
ACCEPTED: Final = {
    'system_memory_total non-counter metrics should not have "_total" suffix',
    'system_swap_total non-counter metrics should not have "_total" suffix',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server whose app publishes metrics, after some requests."""
    with running_server() as server:
        for method, message in (
            ("GetQuote", {"report_data": "1234"}),
            ("GetQuote", {"report_data": "no hex"}),
            ("Nothing", {}),
            ("EmitEvent", {"event": "ready", "payload": "00"}),
        ):
            call(server.dstack, method, message)
        yield server
        server.check_log()


@pytest.fixture
def public(guest_client: GuestClient) -> Client:
    """Return a client of an app that publishes metrics."""
    return guest_client("external", compose=PUBLIC)


def _text(client: Client) -> str:
    response = client.get("/metrics")
    assert response.status == 200, response.body
    return response.body.decode()


def _scrape(server: Server) -> str:
    answer = get(server.url, "/metrics")
    assert answer.status == 200, answer.body
    return answer.body.decode()


def _families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def _value(text: str, name: str, /, **labels: str) -> float:
    [value] = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return value


def _check(text: str) -> set[str]:
    """Return promtool's remarks on metrics; fail if they are malformed."""
    assert PROMTOOL is not None
    done = run_program([PROMTOOL, "check", "metrics"], input=text)
    remarks = set(done.stderr.splitlines())
    assert done.returncode == (3 if remarks else 0), done.stderr  # 1 means malformed
    assert done.stdout == ""
    return remarks


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_accepts_metrics(server: Server) -> None:
    """The tool reports only the two names of the agent."""
    text = _scrape(server)
    assert _check(text) == ACCEPTED
    ours = text[text.index("# HELP attestkit_") :]
    assert _check(ours) == set()


def test_metrics_begin_with_the_system(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """The machine's families come first, with the disks at the configured mount points."""
    text = _text(guest_client("external", compose=PUBLIC))
    assert text.startswith("# HELP dstack_guest_info ")
    assert text.index("\nsystem_os_name{") < text.index("# HELP attestkit_")
    assert 'mount_point="/"' in text
    guest = make_guest(compose=PUBLIC, data_disks=["/no/such/mount"])
    assert "mount_point=" not in _text(guest_client("external", guest))


def test_requests_are_counted(server: Server) -> None:
    """Requests are counted by listener, method and status; unknown methods are `other`."""
    text = _scrape(server)

    def count(method: str, status: str) -> float:
        labels = {"listener": "dstack", "method": method, "status": status}
        return _value(text, "attestkit_requests_total", **labels)

    assert count("GetQuote", "200") == 1
    assert count("GetQuote", "400") == 1
    assert count("EmitEvent", "200") == 1
    assert count("other", "404") == 1
    assert "Nothing" not in text


def test_durations_are_a_histogram(server: Server) -> None:
    """Durations are cumulative buckets by listener and method."""
    text = _scrape(server)
    of_quotes = {"listener": "dstack", "method": "GetQuote"}
    buckets = [
        _value(text, "attestkit_request_duration_seconds_bucket", le=bound, **of_quotes)
        for bound in [*map(str, BOUNDS), "+Inf"]
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 2
    assert _value(text, "attestkit_request_duration_seconds_count", **of_quotes) == 2
    assert 0 < _value(text, "attestkit_request_duration_seconds_sum", **of_quotes) < 60
    assert _families(text)["attestkit_request_duration_seconds"].type == "histogram"


def test_other_metrics(server: Server) -> None:
    """Quotes, runtime events, build info and process metrics."""
    text = _scrape(server)
    assert _value(text, "attestkit_quotes_total") == 1
    events = _value(text, "attestkit_runtime_events")
    call(server.dstack, "EmitEvent", {"event": "one more", "payload": ""})
    text = _scrape(server)
    assert _value(text, "attestkit_runtime_events") == events + 1
    labels = {"core": _native.CORE, "backend": "simulator", "simulated": "true"}
    [build] = _families(text)["attestkit_build_info"].samples
    assert labels.items() <= build.labels.items()
    assert build.labels["version"] == version("attestkit")
    process = psutil.Process(server.process.pid)
    assert _value(text, "process_resident_memory_bytes") == pytest.approx(
        process.memory_info().rss, rel=0.2
    )
    assert _value(text, "process_start_time_seconds") == pytest.approx(process.create_time(), abs=2)
    assert 0 < _value(text, "process_open_fds") < 100
    assert _value(text, "attestkit_open_log_streams") == 0


def test_refusals_and_connections_are_shown(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Refusals, connections and log streams are shown."""
    guest = make_guest(compose=PUBLIC)
    client = guest_client("external", guest)
    traffic = guest.stats.of("http")
    traffic.refusals[431] += 3
    traffic.connections = 5
    guest.stats.streams = 2
    text = _text(client)
    assert _value(text, "attestkit_refusals_total", listener="http", status="431") == 3
    assert _value(text, "attestkit_open_connections", listener="http") == 5
    assert _value(text, "attestkit_open_log_streams") == 2


def test_device_errors_are_counted(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """Errors are counted by class, and do not break the metrics."""
    guest = make_guest(Broken, compose=PUBLIC)
    assert guest_client("dstack", guest).post("/GetQuote").status == 500
    assert guest_client("dstack", guest).post("/Attest").status == 500
    text = _text(guest_client("external", guest))
    assert _value(text, "attestkit_device_errors_total", error="QuoteUnavailableError") == 2
    assert _value(text, "attestkit_quotes_total") == 0


def test_busy_device_does_not_delay_metrics(make_guest: MakeGuest) -> None:
    """While the device is busy, the last number of events is shown, or none."""

    async def main() -> None:
        guest = make_guest(Blocking, compose=PUBLIC)
        show = pages.make_views(guest)["/metrics"].show
        done = threading.Event()

        async def events() -> str:
            body = (await show(guest, ViewRequest())).body
            assert isinstance(body, bytes)
            found = re.search(r"^attestkit_runtime_events (.*)$", body.decode(), re.MULTILINE)
            return found[1] if found else ""

        for expected in ("", "9.0"):
            done.clear()
            quote = asyncio.create_task(guest.on_device(done.wait))
            await asyncio.sleep(0)
            try:
                for _ in range(3):
                    assert await events() == expected
            finally:
                done.set()
            assert await quote
            assert await events() == "9.0"
        await asyncio.to_thread(guest.close)

    run_with_timeout(main())


def test_head_has_no_body(public: Client) -> None:
    """HEAD has the agent's content type and no body."""
    response = public.request("HEAD", "/metrics")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_unreadable_figures_are_500(
    public: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unreadable figures are a 500 with the agent's text in JSON."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    response = public.get("/metrics")
    assert response.status == 500
    assert response.error().startswith("Failed to get system info: system information: ")


def test_global_registry_is_unchanged(public: Client) -> None:
    """Two apps in one program serve the same families and do not use the global registry."""
    from prometheus_client import REGISTRY

    before = {metric.name for metric in REGISTRY.collect()}
    assert _text(public)
    assert {metric.name for metric in REGISTRY.collect()} == before
