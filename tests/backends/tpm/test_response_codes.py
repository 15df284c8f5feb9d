"""Response codes have names and meanings, and are retried only if the TPM is busy."""

import pickle

import pytest

from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import BUSY, TpmBusyError, TpmError, describe
from attestkit.backends.tpm.frames import TpmResponse
from attestkit.errors import BackendBusyError, BackendError
from attestkit.tpm.response_codes import RC_RETRY, RC_TESTING, RC_YIELDED
from tests.backends.tpm.tpm_peer import AnsweringTpm
from tests.raising import raises
from tests.runner.cases import every_case

FLUSHED = TpmResponse(0).encode()


@every_case(
    ("code", "part"),
    [
        (0x18B, "0x18b, TPM_RC_HANDLE of handle 1: no such handle or NV index"),
        (0x28B, "TPM_RC_HANDLE of handle 2"),
        (0x14A, "0x14a, TPM_RC_NV_UNINITIALIZED: "),
        (0x149, "TPM_RC_NV_AUTHORIZATION"),
        (0x98E, "TPM_RC_AUTH_FAIL of session 1: wrong password"),
        (0x9A2, "TPM_RC_BAD_AUTH of session 1"),
        (0x143, "TPM_RC_COMMAND_CODE"),
        (0x000B0143, "0xb0143: the kernel's resource manager refused"),
        (0x902, "TPM_RC_OBJECT_MEMORY: no room for another key"),
        (0x101, "TPM_RC_FAILURE: the TPM is in failure mode"),
        (0x142, "TPM_RC_COMMAND_SIZE"),
        (0x1DF, "TPM_RC_INTEGRITY of parameter 1"),
        (0x1D5, "TPM_RC_SIZE of parameter 1"),
        (0x2D5, "TPM_RC_SIZE of parameter 2"),
        (0x921, "TPM_RC_LOCKOUT"),
        (0x922, "TPM_RC_RETRY"),
        (0x90A, "TPM_RC_TESTING"),
        (0x908, "TPM_RC_YIELDED"),
        (0x7FF, "0x7ff of parameter 7: see TPM 2.0 Library"),
        (0x17F, "0x17f: see TPM 2.0 Library"),
        (0x00080101, "0x80101, layer 0x8: 0x101"),
        (0xFFFFFFFF, "0xffffffff, layer 0xffff: 0xffff"),
    ],
)
def test_code_has_name_and_meaning(code: int, part: str) -> None:
    """A known code has the TPM 2.0 Library's name; unknown ones have their place."""
    assert part in describe(code)
    assert str(TpmError("NV_Read", code, path="TPM")).startswith(f"TPM: NV_Read: {code:#x}")


@every_case(
    ("code", "absent", "denied", "unknown"),
    [
        (0x18B, True, False, False),
        (0x28B, True, False, False),
        (0x14A, True, False, False),
        (0x910, True, False, False),
        (0x1CB, False, False, False),  # of a parameter
        (0x98B, False, False, False),  # of a session
        (0x149, False, True, False),
        (0x98E, False, True, False),
        (0x9A2, False, True, False),
        (0x143, False, False, True),
        (0x000B0143, False, False, True),
        (0x000B018B, False, False, False),
        (0x101, False, False, False),
    ],
)
def test_code_is_classified(code: int, *, absent: bool, denied: bool, unknown: bool) -> None:
    """Callers distinguish what is absent, denied and unknown."""
    error = TpmError("NV_Read", code)
    assert (error.is_absent, error.is_denied, error.is_unknown_command) == (absent, denied, unknown)
    assert isinstance(error, BackendError)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, str(copy), copy.reason) == (code, str(error), "tpm_error")


class Clock:
    """A clock that runs only while the client sleeps, and a little with each command."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.waits.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("code", sorted(BUSY))
def test_busy_tpm_is_asked_again(code: int) -> None:
    """A command is repeated, after growing waits, until the TPM executes it."""
    clock = Clock()
    with AnsweringTpm([TpmResponse(code).encode()] * 9 + [FLUSHED]) as peer:
        client = TpmClient(peer.transport, clock=clock, sleep=clock.sleep)
        client.flush_context(0x80000000)
    assert len(set(peer.commands)) == 1
    assert len(peer.commands) == 10
    assert clock.waits == sorted(clock.waits)
    assert clock.waits[-1] == 0.1
    assert {RC_RETRY, RC_TESTING, RC_YIELDED} == BUSY


def test_tpm_that_stays_busy_is_an_error_within_the_time_limit() -> None:
    """There is an end to the retries, and no sleep beyond the time limit."""
    clock = Clock()
    with AnsweringTpm([TpmResponse(RC_RETRY).encode()] * 1000) as peer:
        client = TpmClient(peer.transport, seconds=2, clock=clock, sleep=clock.sleep)
        with raises(TpmBusyError, "device", part="busy for 2 s (0x922, TPM_RC_RETRY") as caught:
            client.flush_context(0x80000000)
    assert isinstance(caught.value, BackendBusyError)
    assert caught.value.code == RC_RETRY
    assert 10 < len(peer.commands) < 100
    assert clock.now < 2.1


def test_retries_are_limited_without_a_clock() -> None:
    """A clock that stands still does not make the loop endless."""
    with AnsweringTpm([TpmResponse(RC_RETRY).encode()] * 1002) as peer:
        client = TpmClient(peer.transport, clock=lambda: 0.0, sleep=lambda _: None)
        with raises(TpmBusyError, "device"):
            client.flush_context(0x80000000)
    assert len(peer.commands) == 1001


@every_case("code", [0x101, 0x921, 0x902, 0x18B])
def test_other_errors_are_not_retried(code: int) -> None:
    """A command that failed is sent once."""
    with AnsweringTpm([TpmResponse(code).encode()]) as peer, raises(TpmError, "tpm_error"):
        TpmClient(peer.transport).flush_context(0x80000000)
    assert len(peer.commands) == 1
