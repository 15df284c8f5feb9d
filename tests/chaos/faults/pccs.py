"""The PCCS is killed or stopped during verifications, and started again."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial, plain
from tests.serve.client import call
from tests.serve.server import Server, running_server


def verify(server: Server, evidence: dict[str, str]) -> str:
    """Return the verifier's result: valid, or the reason."""
    fields = ("quote", "event_log", "vm_config")
    answer = call(server.ready["verifier"], "verify", {name: evidence[name] for name in fields})
    found = answer.json()
    if "is_valid" not in found:
        return f"{answer.status}: {plain(str(found))}"
    return "valid" if found["is_valid"] else plain(str(found["reason"]))


@contextlib.contextmanager
def running_verifier(
    agent: Server, pccs: str, environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a verifier of an agent's evidence, with collateral from a PCCS."""
    anchor = str(agent.folder / "trust-anchor.pem")
    options = ("--verifier", "127.0.0.1:0", "--verifier-pccs", pccs, "--trust-anchor", anchor)
    with running_server(*options, environ=environ) as server:
        yield server


@scenario("PCCS dies", "the PCCS is killed, and another one started at its place")
def dies(form: Form) -> dict[str, Any]:
    """Evidence is rejected for missing collateral, and verified once a PCCS is available."""
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(running_server("--pccs-http", "127.0.0.1:0"))
        address = agent.ready["pccs"].removeprefix("http://").partition("/")[0]
        evidence = call(agent.dstack, "GetQuote", {"report_data": "77"}).json()
        server = stack.enter_context(running_verifier(agent, agent.ready["pccs"]))
        with Trial(server) as trial, trial.fault():
            agent.process.kill()
            agent.process.wait()
            result_without_pccs = verify(server, evidence)
            trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
            trial.last(form.seconds(0.5, 5))
            stack.enter_context(running_server("--pccs-http", address))
        begin = time.monotonic()
        assert verify(server, evidence) == "valid"
        trial.notes["verify"] = {result_without_pccs: 1}
        trial.notes["verify_recovery_seconds"] = round(time.monotonic() - begin, 2)
    assert result_without_pccs != "valid"
    return trial.result({})


@scenario("PCCS hangs", "the PCCS is stopped while evidence is judged, then goes on")
def hangs(form: Form) -> dict[str, Any]:
    """Only requests that need collateral wait."""
    with running_server("--pccs-http", "127.0.0.1:0") as agent:
        evidence = call(agent.dstack, "GetQuote", {"report_data": "77"}).json()
        with running_verifier(agent, agent.ready["pccs"]) as server, Trial(server) as trial:
            with trial.fault():
                os.kill(agent.process.pid, signal.SIGSTOP)
                try:
                    begin = time.monotonic()
                    result_without_pccs = verify(server, evidence) if form.full else "not asked"
                    waited = round(time.monotonic() - begin, 1)
                    trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
                finally:
                    os.kill(agent.process.pid, signal.SIGCONT)
            assert verify(server, evidence) == "valid"
            trial.notes["verify"] = {f"{result_without_pccs} (after {waited:g} s)": 1}
    assert result_without_pccs != "valid"
    return trial.result({})
