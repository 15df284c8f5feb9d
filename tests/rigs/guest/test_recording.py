"""Recordings of emulated hardware and of an agent: responses and errors are replayed.

The emulator and the agent's server have ended before the replay.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from attestkit.attester import Attester
from attestkit.backends import load
from attestkit.backends.base import GuestAgent, RegisterExtender
from attestkit.backends.recording import Recording
from attestkit.errors import AttestKitError, UnsupportedError
from attestkit.verifier import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.raising import raises
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.serve.server import running_server
from tests.untyped import untyped

pytestmark = pytest.mark.slow

Use: TypeAlias = Callable[[Attester], object]

CALLS: tuple[Use, ...] = (
    lambda tee: tee.attest(report_data=b"nonce", pad=True).to_bytes(),
    lambda tee: tee.emit_event("model", b"1"),
    lambda tee: tee.attest(report_data=b"nonce", pad=True).to_bytes(),
    lambda tee: tee.attest(report_data=b"other", pad=True).to_bytes(),
    lambda tee: tee.registers(),
    lambda tee: tee.event_log().to_json(),
    lambda tee: tee.app_compose.raw,
    lambda tee: tee.vm_config,
)


@pytest.fixture(autouse=True)
def _no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the host-shared directory."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "none"))


def run_calls(tee: Attester, *, before: Callable[[int], None] = lambda _: None) -> list[object]:
    """Return the result or error of each call; `before` is called before each."""
    found: list[object] = []
    for number, use in enumerate(CALLS):
        before(number)
        try:
            found.append(use(tee))
        except AttestKitError as error:
            found.append((type(error), error.reason, str(error)))
    return found


def record_machine(path: Path, machine: Emulator) -> Recording:
    """Return the recorded backend of a machine."""
    return Recording(path, of="configfs_tsm", options={"root": machine.root})


@pytest.mark.rig
@requires_fuse
def test_recording_of_tdx_guest_is_identical(tmp_path: Path) -> None:
    """Quotes, registers and journal; the evidence verifies."""
    path = tmp_path / "a.jsonl"
    with emulator() as machine:
        verifier = Verifier(
            trust_anchor=machine.trust_anchor,
            collateral=machine.collateral(),
            policy=AppraisalPolicy.default(),
        )
        with Attester(record_machine(path, machine)) as tee:
            assert not tee.simulated
            first = run_calls(tee)
    with Attester(Recording(path)) as tee:
        assert tee.simulated
        assert isinstance(tee.backend, RegisterExtender)
        assert run_calls(tee) == first
    for evidence, report_data in ((first[0], b"nonce"), (first[2], b"nonce"), (first[3], b"other")):
        assert isinstance(evidence, bytes)
        assert verifier.verify(evidence, report_data=report_data).simulated


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
def test_recording_repeats_errors(tmp_path: Path) -> None:
    """Each error has its type and text, with successful calls between them."""
    path = tmp_path / "a.jsonl"
    with emulator(kernel_release="6.18") as machine, Attester(record_machine(path, machine)) as tee:

        def arm(number: int) -> None:
            machine.clear_faults()
            machine.fault(*FAULTS.get(number, ()))

        first = run_calls(tee, before=arm)
    with Attester(Recording(path)) as tee:
        assert run_calls(tee) == first
    failed = [number for number, found in enumerate(first) if isinstance(found, tuple)]
    assert {0, 2, 4} <= set(failed), first


@pytest.mark.slow
def test_recording_of_agent_is_identical(tmp_path: Path) -> None:
    """The server has ended before the replay."""
    path = tmp_path / "a.jsonl"
    with running_server() as server:
        agent = untyped(load("dstack_agent"))(endpoint=server.dstack)
        with Attester(Recording(path, of=agent)) as tee:
            key = tee.keys.derive_compat("wallet").key
            first = run_calls(tee)
    with Attester(Recording(path)) as tee:
        assert isinstance(tee.backend, GuestAgent)
        assert run_calls(tee) == first
        with raises(UnsupportedError, "no_keys"):
            tee.keys.derive_compat("wallet")
    assert isinstance(first[0], bytes)
    assert first[0] != first[2]
    assert key.hex() not in path.read_text()
