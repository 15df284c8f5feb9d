"""What hardware's own files answered, and what went wrong with them, comes again from a recording.

The emulator behind them is gone by then, and so is the server that an agent's client talked to.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from attestkit.attester import Attester
from attestkit.backends import load
from attestkit.backends.base import Backend, GuestAgent, RegisterExtender, SnpReporter
from attestkit.backends.recording import Recording
from attestkit.errors import AttestKitError, UnsupportedError
from attestkit.verifier import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.serve.server import running_server
from tests.untyped import untyped

Use: TypeAlias = Callable[[Attester], object]

CALLS: tuple[Use, ...] = (
    lambda tee: tee.attest(b"nonce").to_bytes(),
    lambda tee: tee.emit_event("model", b"1"),
    lambda tee: tee.attest(b"nonce").to_bytes(),
    lambda tee: tee.attest(b"other").to_bytes(),
    lambda tee: tee.registers(),
    lambda tee: tee.event_log().to_json(),
    lambda tee: tee.app_compose.raw,
    lambda tee: tee.vm_config,
)


@pytest.fixture(autouse=True)
def _no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host shares files."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "none"))


def outcomes(tee: Attester, *, before: Callable[[int], None] = lambda _: None) -> list[object]:
    """Return what each call gives, or its error; `before` each of them something may happen."""
    found: list[object] = []
    for number, use in enumerate(CALLS):
        before(number)
        try:
            found.append(use(tee))
        except AttestKitError as error:
            found.append((type(error), str(error)))
    return found


def record(path: Path, machine: Emulator, *, of: str = "configfs_tsm") -> Recording:
    """Return the backend of a machine, recorded."""
    options: dict[str, object] = {"root": machine.root}
    if machine.qgs:
        options["qgs"] = machine.qgs
    return Recording(path, of=of, options=options)


@pytest.mark.rig
@requires_fuse
@pytest.mark.parametrize("kernel", ["6.12", "6.18", "7.1"])
def test_a_tdx_guest(tmp_path: Path, kernel: str) -> None:
    """Quotes, registers, journal: the same bytes, and evidence that verifies as before."""
    path = tmp_path / "a.jsonl"
    with emulator(kernel=kernel) as machine:
        verifier = Verifier(
            machine.trust_anchor, machine.collateral(), policy=AppraisalPolicy.default()
        )
        with Attester(record(path, machine)) as tee:
            assert not tee.simulated
            first = outcomes(tee)
    with Attester(Recording(path)) as tee:
        assert tee.simulated
        assert isinstance(tee.backend, RegisterExtender)
        assert outcomes(tee) == first
    for evidence, asked in ((first[0], b"nonce"), (first[2], b"nonce"), (first[3], b"other")):
        assert isinstance(evidence, bytes)
        assert verifier.verify(evidence, report_data=asked).simulated


@pytest.mark.rig
@requires_fuse
def test_an_snp_guest(tmp_path: Path) -> None:
    """Reports with the host's certificates; what SNP has not, it has not in a replay."""
    path = tmp_path / "a.jsonl"
    with emulator(provider="sev_guest") as machine, Attester(record(path, machine)) as tee:
        first = outcomes(tee)
    with Attester(Recording(path)) as tee:
        assert isinstance(tee.backend, SnpReporter)
        assert not isinstance(tee.backend, RegisterExtender)
        assert outcomes(tee) == first
    assert isinstance(first[0], bytes)
    assert isinstance(first[1], tuple)
    assert first[1][0] is UnsupportedError


@pytest.mark.rig
@requires_fuse
def test_the_device_and_its_service(tmp_path: Path) -> None:
    """The other way to a quote."""
    path = tmp_path / "a.jsonl"
    with emulator(qgs=True) as machine, Attester(record(path, machine, of="tdx_ioctl")) as tee:
        machine.fault("qgs_error@1")
        first = outcomes(tee)
    with Attester(Recording(path)) as tee:
        assert outcomes(tee) == first
    assert isinstance(first[0], bytes)
    assert isinstance(first[2], tuple)


FAULTS = {
    0: ("eio",),
    1: (),
    2: ("empty_outblob",),
    3: ("rtmr_extend_fails",),
    4: ("read:rtmr0=EIO",),
    5: ("foreign_extend",),
}


@pytest.mark.rig
@requires_fuse
def test_what_went_wrong_goes_wrong_again(tmp_path: Path) -> None:
    """Each error with its class and text, and what came right between them."""
    path = tmp_path / "a.jsonl"
    with emulator(kernel="6.18") as machine, Attester(record(path, machine)) as tee:

        def arm(number: int) -> None:
            machine.clear_faults()
            machine.fault(*FAULTS.get(number, ()))

        first = outcomes(tee, before=arm)
    with Attester(Recording(path)) as tee:
        assert outcomes(tee) == first
    failed = [number for number, found in enumerate(first) if isinstance(found, tuple)]
    assert {0, 2, 4} <= set(failed), first


def agent(path: Path, endpoint: str | None = None) -> Backend:
    """Return an agent's client, recorded, or what it left."""
    if endpoint is None:
        return Recording(path)
    return Recording(path, of=untyped(load("dstack_agent"))(endpoint=endpoint))


def test_an_agent_behind_a_socket(tmp_path: Path) -> None:
    """Answers of a server, which is gone when they come again."""
    path = tmp_path / "a.jsonl"
    with running_server() as server, Attester(agent(path, server.dstack)) as tee:
        key = tee.keys.derive("wallet").key
        first = outcomes(tee)
    with Attester(agent(path)) as tee:
        assert isinstance(tee.backend, GuestAgent)
        assert outcomes(tee) == first
        with pytest.raises(UnsupportedError, match="keys are not recorded"):
            tee.keys.derive("wallet")
    assert isinstance(first[0], bytes)
    assert first[0] != first[2]
    assert key.hex() not in path.read_text()
