"""`/metrics` is what Prometheus reads: the agent's families as the agent writes them, and ours."""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from attestkit import _native
from attestkit.serve import listener_apps
from attestkit.serve import listener_apps as pages
from attestkit.serve.counters import BOUNDS
from attestkit.serve.http.views import Asked
from attestkit.serve.machine_info import Disk, read_figures
from attestkit.serve.metrics.agent import _as_the_agent, _machine
from tests.serve.asgi import Client
from tests.serve.client import Connection, call
from tests.serve.docker.engine import run
from tests.serve.guests import Blocking, Broken, MakeGuest
from tests.serve.server import Server, running_server
from tests.vectors import SHARED

PROMTOOL: Final = shutil.which("promtool")
PUBLIC: Final = {"public_sysinfo": True}
# The table of the guest agent API: name, labels, help.
DISK: Final = ("name", "mount_point")
TABLE: Final = [
    ("system_os_name", ("os_name",), "Operating system name"),
    ("system_os_version", ("os_version",), "Operating system version"),
    ("system_kernel_version", ("kernel_version",), "Kernel version"),
    ("system_cpu_model", ("cpu_model",), "CPU model information"),
    ("system_num_cpus", (), "Number of logical CPUs"),
    ("system_memory_total", (), "Total memory in bytes"),
    ("system_memory_available", (), "Available memory in bytes"),
    ("system_memory_used", (), "Used memory in bytes"),
    ("system_memory_free", (), "Free memory in bytes"),
    ("system_swap_total", (), "Total swap memory in bytes"),
    ("system_swap_used", (), "Used swap memory in bytes"),
    ("system_swap_free", (), "Free swap memory in bytes"),
    ("system_uptime", (), "System uptime in seconds"),
    ("system_load_average_1m", (), "System load average (1 minute)"),
    ("system_load_average_5m", (), "System load average (5 minutes)"),
    ("system_load_average_15m", (), "System load average (15 minutes)"),
    ("disk_total_size", DISK, "Disk total size in bytes"),
    ("disk_free_size", DISK, "Disk free size in bytes"),
    ("disk_used_size", DISK, "Disk used size in bytes"),
    ("disk_usage_percentage", DISK, "Disk usage percentage"),
]
# promtool finds fault with these names, which are the agent's and must stay.
ACCEPTED: Final = {
    'system_memory_total non-counter metrics should not have "_total" suffix',
    'system_swap_total non-counter metrics should not have "_total" suffix',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running server whose app publishes its figures, with some traffic behind it."""
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
def public(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> Client:
    """A client of an app that publishes its figures."""
    return Client(listener_apps.external_app(make_guest(compose=PUBLIC)), loop)


def _text(client: Client) -> str:
    response = client.get("/metrics")
    assert response.status == 200, response.body
    return response.body.decode()


def _scrape(server: Server) -> str:
    with contextlib.closing(Connection(server.url)) as connection:
        answer = connection.send_request("GET", "/metrics")
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
    """Return what promtool says of metrics; malformed ones fail."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    remarks = set(done.stderr.splitlines())
    assert done.returncode == (3 if remarks else 0), done.stderr  # 1: it cannot be read
    assert done.stdout == ""
    return remarks


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_reads_them(server: Server) -> None:
    """All is well formed; of names, only two of the agent's are not as they would be today."""
    text = _scrape(server)
    assert _check(text) == ACCEPTED
    ours = text[text.index("# HELP attestkit_") :]
    assert _check(ours) == set()


def test_promtool_example_of_the_document(server: Server) -> None:
    """The document's own command, but for host and port, gets them."""
    shown = re.compile(r'^curl "http://[\d.]+:\d+/metrics"$', re.MULTILINE)
    documents = [document.read_text() for document in SHARED.glob("seeds/*.txt")]
    commands = [command for document in documents for command in shown.findall(document)]
    if not documents or shutil.which("curl") is None:
        pytest.skip("the API document or curl is not here")
    assert len(commands) == 1
    for command in commands:
        done = subprocess.run(
            ["/bin/sh", "-c", re.sub(r"http://[\d.:]+", server.url, command) + " -sS --include"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        head, _, body = done.stdout.replace("\r", "").partition("\n\n")
        assert head.startswith("HTTP/1.1 200 OK\n")
        assert "content-type: text/plain; charset=utf-8\n" in head
        assert body.startswith("# HELP system_os_name Operating system name\n")


def test_the_agents_families(public: Client) -> None:
    """Each row of the table: name, labels, help, a gauge; a blank line between."""
    text = _text(public)
    agent = text[: text.index("# HELP attestkit_")]
    blocks = agent.rstrip("\n").split("\n\n")
    assert len(blocks) == len(TABLE)
    for block, (name, labels, what) in zip(blocks, TABLE, strict=True):
        first, second, *samples = block.split("\n")
        assert first == f"# HELP {name} {what}"
        assert second == f"# TYPE {name} gauge"
        [sample] = samples
        inside = ", ".join(f'{label}="[^"]*"' for label in labels)
        number = r"\d+(\.\d+)?" if name == "disk_usage_percentage" else r"\d+"
        pattern = rf"{name}\{{{inside}\}} {number}" if labels else rf"{name} {number}"
        assert re.fullmatch(pattern, sample), sample


def test_the_agents_values(public: Client) -> None:
    """The values are this machine's, and those that belong together agree."""
    text, figures = _text(public), read_figures()
    assert _value(text, "system_os_name", os_name=figures.os_name) == 1
    assert _value(text, "system_os_version", os_version=figures.os_version) == 1
    assert _value(text, "system_kernel_version", kernel_version=os.uname().release) == 1
    assert _value(text, "system_num_cpus") == os.cpu_count()
    total = _value(text, "system_memory_total")
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    used, available = (_value(text, f"system_memory_{name}") for name in ("used", "available"))
    assert used == total - available
    assert _value(text, "system_swap_used") == _value(text, "system_swap_total") - _value(
        text, "system_swap_free"
    )
    assert abs(_value(text, "system_uptime") - figures.uptime) <= 5
    assert 0 <= _value(text, "system_load_average_15m") - figures.load.fifteen + 5 <= 10
    [disk] = figures.disks
    labels = {"name": disk.name, "mount_point": "/"}
    size, free, in_use, percentage = (
        _value(text, f"disk_{name}", **labels)
        for name in ("total_size", "free_size", "used_size", "usage_percentage")
    )
    assert in_use == size - free
    assert percentage == in_use / size * 100


def test_families_without_samples(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """Where no disk is at the mount points asked for, help and type are there, and nothing else."""
    guest = make_guest(compose=PUBLIC, data_disks=["/no/such/mount"])
    text = _text(Client(listener_apps.external_app(guest), loop))
    for name, _, what in TABLE[-4:]:
        assert f"# HELP {name} {what}\n# TYPE {name} gauge\n\n" in text
        assert f"\n{name}" not in text


def test_an_empty_disk_is_not_full() -> None:
    """A file system without a size has a percentage of 0, written as the number it is."""
    figures = read_figures()._replace(disks=(Disk("d", "/", 0, 0),))
    text = _as_the_agent(list(_machine(figures))[-1])
    assert text.endswith('disk_usage_percentage{name="d", mount_point="/"} 0\n')


# The parser that reads it here takes a carriage return for the end of a line; promtool does not.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
def test_label_values_are_escaped(value: str) -> None:
    """Whatever a label's value holds, it is read back as it was, and stays one sample."""
    family = GaugeMetricFamily("disk_total_size", "Disk total size in bytes", labels=("a", "b"))
    family.add_metric((value, value), 7)
    text = _as_the_agent(family)
    assert text.count("\n") == 3
    [read] = text_string_to_metric_families(text)
    [sample] = read.samples
    assert (sample.labels, sample.value) == ({"a": value, "b": value}, 7)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_hostile_label_values_are_read_by_promtool() -> None:
    """Quotes, backslashes, line ends and foreign letters are no way out of a label."""
    family = GaugeMetricFamily("disk_free_size", "Disk free size in bytes", labels=("name",))
    for value in ('"} 1\nevil 2\n', "\\", '\\"', "\\n", "a\rb", "\u202e\u0446", "\0", "x" * 10000):
        family.add_metric((value,), 1)
    assert _check(_as_the_agent(family)) == set()


def test_requests_are_counted(server: Server) -> None:
    """Requests by listener, method and status; strangers' names are one, called other."""
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
    """By listener and method, in cumulated buckets whose last has them all."""
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


def test_the_rest_of_ours(server: Server) -> None:
    """Quotes, length of the log, what runs, and the process itself."""
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


def test_refusals_and_connections(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """What listeners note in the statistics is shown."""
    guest = make_guest(compose=PUBLIC)
    client = Client(listener_apps.external_app(guest), loop)
    traffic = guest.stats.of("http")
    traffic.refusals[431] += 3
    traffic.connections = 5
    guest.stats.streams = 2
    text = _text(client)
    assert _value(text, "attestkit_refusals_total", listener="http", status="431") == 3
    assert _value(text, "attestkit_open_connections", listener="http") == 5
    assert _value(text, "attestkit_open_log_streams") == 2


def test_device_errors_are_counted(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """By the class of the error; a device that fails does not take the metrics with it."""
    guest = make_guest(Broken, compose=PUBLIC)
    assert Client(listener_apps.dstack_app(guest), loop).post("/GetQuote").status == 500
    assert Client(listener_apps.dstack_app(guest), loop).post("/Attest").status == 500
    text = _text(Client(listener_apps.external_app(guest), loop))
    assert _value(text, "attestkit_device_errors_total", error="QuoteUnavailableError") == 2
    assert _value(text, "attestkit_quotes_total") == 0


def test_the_log_is_read_in_the_devices_thread(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """On a device that blocks the length of the log is there too."""
    text = _text(Client(listener_apps.external_app(make_guest(Blocking, compose=PUBLIC)), loop))
    assert _value(text, "attestkit_runtime_events") == 9


def test_nobody_waits_for_a_busy_device(make_guest: MakeGuest) -> None:
    """While another question takes its time, the number of events is the last, or left out."""

    async def main() -> None:
        guest = make_guest(Blocking, compose=PUBLIC)
        show = pages.page_views(guest)["/metrics"].show
        done = threading.Event()

        async def events() -> str:
            body = (await show(guest, Asked())).body
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

    run(main())


def test_only_where_the_app_publishes_them(external: Client) -> None:
    """An app that does not say public_sysinfo has no metrics."""
    response = external.get("/metrics")
    assert (response.status, response.error()) == (404, "No such path: /metrics")


def test_no_body_for_head(public: Client) -> None:
    """HEAD gets the type, which is the agent's."""
    response = public.request("HEAD", "/metrics")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_machine_that_does_not_tell(
    public: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without figures it is a 500 with the agent's text, in JSON."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    response = public.get("/metrics")
    assert response.status == 500
    assert response.error().startswith("Failed to get system info: the machine does not tell")


def test_the_global_registry_stays_empty_of_ours(public: Client) -> None:
    """Two apps in one program show the same families, and neither adds to the program's own."""
    from prometheus_client import REGISTRY

    before = {metric.name for metric in REGISTRY.collect()}
    assert _text(public)
    assert {metric.name for metric in REGISTRY.collect()} == before
