"""Load the server for an hour and record its resources: `make soak`.

200 connections over both sockets and HTTP request everything that is served, `/v1` too, in JSON, in
protobuf and as pages. With a container engine, ten of them follow the logs of a container that
writes and of a silent one. Every ten seconds memory, descriptors, threads and latencies are written
to docs/records/soak.json. The run fails if a request fails, or if memory, descriptors or threads
grow after the first five minutes. A run of less than ten minutes is not recorded.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvloop

from tests.long_runs.records import write_record
from tests.rigs.docker.engine import missing_for_docker, running_engine
from tests.serve.client import call
from tests.serve.server import Server, environment, errors_in, running_server
from tests.soak.load import LoadRecord, RequestKind, run_client, run_follower
from tests.soak.resources import PERIOD, WARM, find_growth, has_grown, take_sample

CONNECTIONS = {"dstack": 110, "tappd": 40, "http": 40}
FOLLOWERS = {"writer": 7, "quiet": 3}
WRITER = "while true; do echo $(seq 20); sleep 0.1; done"  # command of the writing container
QUIET = "sleep 1000000"


def main() -> int:
    """Return 0 if requests succeeded and the server did not grow after the warm-up."""
    parser = argparse.ArgumentParser(description="Load the server, and see whether it grows.")
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    ledger = LoadRecord()
    with contextlib.ExitStack() as stack:
        docker = None if missing_for_docker() else stack.enter_context(running_engine())
        environ = environment(**({} if docker is None else {"DOCKER_HOST": docker.address}))
        if docker is not None:
            docker.run("writer", WRITER)
            docker.run("quiet", QUIET)
        server = stack.enter_context(running_server("--access-log", environ=environ))
        samples = uvloop.run(_soak(server, ledger, options.seconds, follow=docker is not None))
        log = server.log()
    growth = find_growth(samples)
    figures = {
        "command": f"python -m tests.soak --seconds {options.seconds:g}",
        "connections": sum((CONNECTIONS | FOLLOWERS).values()),
        "container_engine": missing_for_docker() or "dockerd",
        "log_bytes": ledger.log_bytes,
        "requests": ledger.requests.total(),
        "failures": dict(ledger.failures),
        "growth": growth,
        "by_request": dict(ledger.requests.most_common()),
        "samples": samples,
    }
    sys.stdout.write(
        f"{figures['requests']} requests, failures {figures['failures']}, growth {growth}\n"
    )
    if options.seconds >= 2 * WARM:
        write_record("soak", figures)
    errors = errors_in(log)
    sys.stdout.write("\n".join([f"{len(errors)} errors in the log", *errors[:5], ""]))
    failed = ledger.failures or not ledger.requests or errors
    return 1 if failed or has_grown(growth) else 0


def _create_requests(server: Server) -> dict[str, Sequence[RequestKind]]:
    key = {"path": "my/key", "purpose": "soak", "algorithm": "secp256k1"}
    sign = {"algorithm": "ed25519", "data": "deadbeef"}
    signed = call(server.dstack, "Sign", sign).json()
    check = {**sign, "signature": signed["signature"], "public_key": signed["public_key"]}
    return {
        "dstack": [
            RequestKind.post("/GetQuote", {"report_data": "1234"}, 20),
            RequestKind.post("/GetQuote", None, 5, binary=b"\n\x02\x12\x34"),
            RequestKind.post("/GetKey", key, 20),
            RequestKind.post("/GetKey", None, 5, binary=b"\n\x06my/key"),
            RequestKind.post("/Sign", sign, 20),
            RequestKind.post("/Verify", check, 10),
            RequestKind.post("/Info", {}, 10),
            RequestKind.post("/Attest", {"report_data": "1234"}, 5),
            RequestKind.post("/GetTlsKey", {"subject": "soak", "usage_ra_tls": True}, 2),
            RequestKind.get("/GetKey?path=my/key", 3),
            RequestKind.post("/v1/Attest", {"report_data": "1234"}, 10),
            RequestKind.post("/v1/Attest", None, 3, binary=b"\n\x02\x12\x34"),
            RequestKind.post("/v1/GetKey", {"domain": "soak", "algorithm": "ed25519"}, 20),
            RequestKind.post("/v1/IssueCert", {"subject": "soak", "usage_ra_tls": True}, 2),
            RequestKind.post("/v1/Info", {}, 10),
            RequestKind.post("/v1/Info", None, 3, binary=b""),
            RequestKind.post("/v1/Version", {}, 10),
        ],
        "tappd": [
            RequestKind.post("/prpc/Tappd.TdxQuote", {"report_data": "1234"}, 5),
            RequestKind.post("/prpc/Tappd.DeriveKey", {"path": "a", "subject": "b"}, 1),
            RequestKind.post("/prpc/Tappd.Info", {}, 5),
        ],
        "http": [
            RequestKind.get("/", 1),
            RequestKind.get("/metrics", 2),
            RequestKind.get("/openapi.json", 1),
            RequestKind.get("/prpc/Worker.Info", 5),
            RequestKind.get("/prpc/Worker.Version", 10),
            RequestKind.post("/prpc/Worker.GetAttestationForAppKey", {"algorithm": "ed25519"}, 5),
        ],
    }


async def _soak(
    server: Server, ledger: LoadRecord, seconds: float, *, follow: bool
) -> list[dict[str, Any]]:
    end = time.monotonic() + seconds
    asks = _create_requests(server)
    endpoints = {"dstack": server.dstack, "tappd": server.tappd, "http": server.url}
    tasks = [
        asyncio.create_task(run_client(endpoints[name], asks[name], ledger, end))
        for name, count in CONNECTIONS.items()
        for _ in range(count)
    ]
    for name, count in FOLLOWERS.items():
        target = f"/logs/{name}?text&bare&follow&tail=10"
        for _ in range(count):
            work = (
                run_follower(server.url, target, ledger, end)
                if follow
                else run_client(server.url, asks["http"], ledger, end)
            )
            tasks.append(asyncio.create_task(work))
    samples = [sample async for sample in _samples(server, ledger, end)]
    await asyncio.gather(*tasks)
    return samples


async def _samples(server: Server, ledger: LoadRecord, end: float) -> AsyncIterator[dict[str, Any]]:
    begin = time.monotonic()
    emitted = 0
    while (now := time.monotonic()) < end:
        await asyncio.sleep(min(PERIOD, end - now))
        yield take_sample(server.process.pid, time.monotonic() - begin, ledger.take_durations())
        if (
            time.monotonic() - begin > 60 * emitted
        ):  # one event a minute, because the log grows with each
            emitted += 1
            event = {"event": f"soak-{emitted}", "payload": "00"}
            await asyncio.to_thread(call, server.dstack, "EmitEvent", event)


if __name__ == "__main__":
    sys.exit(main())
