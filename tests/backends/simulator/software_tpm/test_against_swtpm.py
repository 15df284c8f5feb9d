"""The model answers as swtpm does: with the same bytes, or the same response code and size."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from tests.backends.simulator.software_tpm.command_frames import (
    INDEX,
    OWNER,
    PERSISTENT,
    PLATFORM,
    Cases,
    TpmPair,
    authorized,
    code_of,
    create,
    ecc,
    frame,
    handle_of,
    handles,
    nv_define,
    nv_public,
    nv_read,
    nv_write,
    rsa,
    start_session,
)
from tests.backends.simulator.software_tpm.swtpm_cases import EVERY, capability
from tests.machines.software_tpm import needs_swtpm
from tests.runner.cases import every_case

if TYPE_CHECKING:
    from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor

pytestmark = needs_swtpm

# Commands whose responses differ in content, not in size: keys, nonces, times.
SAME_SIZE: Final = {0x131, 0x158, 0x173, 0x176, 0x17B, 0x181}
SAVE: Final = 0x162

# Features that the model lacks: response codes of libtpms 0.9.2 and of the model.
LEFT_OUT: Final = {
    "counter": (nv_define(nv_public(attributes=0x00020012)), 0, 0x2C2),
    "policy-session": (start_session(kind=1), 0, 0x3C4),
    "trial-session": (start_session(kind=3), 0, 0x3C4),
    "hmac-key": (create(ecc(kind=0x08)), 0x2DA, 0x2CA),
    "symmetric-key": (create(ecc(kind=0x25)), 0x2D6, 0x2CA),
    "ecdaa": (create(ecc(scheme="001a000b0001")), 0, 0x2D2),
    "ecdh": (create(ecc(attributes=0x00020072, scheme="0019000b")), 0, 0x2D2),
    "p521": (create(ecc(curve=5)), 0, 0x2E6),
    "cbc": (create(ecc(attributes=0x30072, symmetric="000600800042", scheme="0010")), 0, 0x2D6),
    "rsa-1024": (create(rsa(bits=1024)), 0, 0x2C4),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TpmPair]:
    """Return two TPMs for all cases, each of which leaves them as they were."""
    pair = TpmPair(tmp_path_factory.mktemp("swtpm"))
    yield pair
    pair.swtpm.close()


@pytest.fixture
def pair(shared: TpmPair) -> Iterator[TpmPair]:
    """Return the two TPMs; remove what a test leaves in them."""
    yield shared
    clear(shared)


def clear(pair: TpmPair) -> None:
    """Remove from both TPMs what a test may have left in them."""
    left = [frame(0x165, handles(0x80000000 + slot)) for slot in range(3)]
    left += [frame(0x165, handles(0x02000000 + number)) for number in range(5)]
    left += [frame(0x165, handles(0x03000000 + number)) for number in range(5)]
    left += [authorized(0x122, handles(owner, INDEX)) for owner in (OWNER, PLATFORM)]
    left.append(authorized(0x120, handles(OWNER, PERSISTENT), handles(PERSISTENT)))
    for command in left:
        pair.run(command)


def check(pair: TpmPair, command: bytes) -> None:
    """Compare the answers to a command."""
    theirs, ours = pair.run(command)
    code = int.from_bytes(command[6:10], "big")
    assert f"{code_of(ours):x}" == f"{code_of(theirs):x}", command.hex()
    if code == SAVE:
        return
    if code in SAME_SIZE or handles(0x02000000) in command[10:]:  # a session's nonce
        assert len(ours) == len(theirs)
        assert ours[:10] == theirs[:10]
    else:
        assert ours.hex() == theirs.hex(), command.hex()


def names(cases: dict[str, Cases]) -> list[tuple[str, str]]:
    """Return group and name of all cases."""
    return [(group, name) for group, found in cases.items() for name in found]


@every_case(("group", "name"), names(EVERY))
def test_answers_are_alike(shared: TpmPair, group: str, name: str) -> None:
    """Each command gets the same answer, in the same state."""
    try:
        for command in EVERY[group][name]:
            check(shared, command)
    finally:
        clear(shared)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_omissions_are_refused(pair: TpmPair, name: str) -> None:
    """Features that the model lacks are refused with the code for an unsupported value."""
    command, theirs, ours = LEFT_OUT[name]
    assert tuple(map(code_of, pair.run(command))) == (theirs, ours)


@pytest.mark.parametrize(
    "command",
    [
        authorized(0x182, handles(8), bytes.fromhex("00000001000b") + bytes(32)),
        nv_define(nv_public(attributes=0x02020002)),
        nv_read(1, 0),
        nv_write(b"data", 0),
        start_session(),
        capability(5, 0),
        authorized(0x120, handles(OWNER, 0x80000000), handles(PERSISTENT)),
        authorized(0x122, handles(OWNER, INDEX)),
        authorized(0x165, b"", handles(0x80000000)),
        authorized(0x161, b"", bytes(40)),
        authorized(0x162, handles(0x80000000)),
    ],
    ids=[
        *("extend", "define", "read", "write", "session", "capability", "evict", "undefine"),
        *("flush", "context-load", "context-save"),
    ],
)
def test_cut_commands_get_the_same_code(pair: TpmPair, command: bytes) -> None:
    """A command that ends at any byte is refused alike."""
    for size in range(10, len(command)):
        cut = command[:2] + size.to_bytes(4, "big") + command[6:size]
        check(pair, cut)


def test_cut_template_gets_the_same_code(pair: TpmPair) -> None:
    """CreatePrimary that ends at any byte is refused alike."""
    command = create(ecc())
    for size in range(10, len(command)):
        check(pair, command[:2] + size.to_bytes(4, "big") + command[6:size])


def test_contexts_are_loaded_alike(pair: TpmPair) -> None:
    """Each TPM loads the contexts it saved; a changed or repeated one is refused alike."""
    pair.run(create(ecc()))
    pair.run(start_session())
    for handle in (0x80000000, 0x02000000):
        saved = [response[10:] for response in pair.run(frame(0x162, handles(handle)))]

        def load(change: int, saved: list[bytes] = saved) -> list[int]:
            found = []
            executors: tuple[CommandExecutor, ...] = (pair.swtpm, pair.model)
            for tpm, context in zip(executors, saved, strict=True):
                changed = bytearray(context)
                if change:
                    changed[change] ^= 1
                found.append(code_of(tpm.execute(frame(0x161, bytes(changed)))))
            return found

        for change in (7, 14, 40, -1, 0):
            theirs, ours = load(change)
            assert theirs == ours, (handle, change)
        theirs, ours = load(0)
        assert theirs == ours


def test_older_context_of_a_session_is_refused(pair: TpmPair) -> None:
    """Only the last context of a session is valid; a key's contexts all are."""
    pair.run(create(ecc()))
    pair.run(start_session())
    executors: tuple[CommandExecutor, ...] = (pair.swtpm, pair.model)
    for tpm in executors:
        for handle, code in ((0x02000000, 0x1CB), (0x80000000, 0)):
            save = frame(0x162, handles(handle))
            old = tpm.execute(save)[10:]
            tpm.execute(frame(0x161, old))
            new = tpm.execute(save)[10:]
            assert code_of(tpm.execute(frame(0x161, old))) == code
            tpm.execute(frame(0x165, handles(0x80000002)))
            assert code_of(tpm.execute(frame(0x161, new))) == 0


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TpmPair]:
    """Return two TPMs for one test."""
    pair = TpmPair(tmp_path_factory.mktemp("fresh"))
    yield pair
    pair.swtpm.close()


def test_wrong_passwords_lead_to_lockout(fresh: TpmPair) -> None:
    """Three wrong passwords lock out all entities that count them, and no others."""
    other = INDEX + 1
    for command in (
        nv_define(nv_public(attributes=0x00060006), secret=b"secret"),
        nv_define(nv_public(index=other, attributes=0x02060006), secret=b"secret"),
        nv_write(b"12345678", 0),
        nv_write(b"12345678", 0, index=other),
        *[nv_read(8, 0, by=INDEX, secret=b"wrong")] * 4,
        nv_read(8, 0, by=INDEX, secret=b"secret"),
        nv_read(8, 0),
        nv_read(8, 0, by=other, index=other, secret=b"wrong"),
        nv_read(8, 0, by=other, index=other, secret=b"secret"),
        capability(6, 0x20E, 1),
    ):
        check(fresh, command)


def test_full_storage_is_reported(fresh: TpmPair) -> None:
    """The TPM's own room differs; both end with the same code."""
    executors: tuple[CommandExecutor, ...] = (fresh.swtpm, fresh.model)
    for tpm in executors:
        codes = [
            code_of(tpm.execute(nv_define(nv_public(index=0x01500000 + n, size=2048))))
            for n in range(300)
        ]
        assert set(codes) == {0, 0x14B}
        assert codes[-1] == 0x14B


def test_transient_handles_are_reused(fresh: TpmPair) -> None:
    """Handles are given from the lowest on."""
    assert [handle_of(one) for one in fresh.run(create(ecc()))] == [0x80000000] * 2
    assert [handle_of(one) for one in fresh.run(create(ecc()))] == [0x80000001] * 2
    fresh.run(frame(0x165, handles(0x80000000)))
    assert [handle_of(one) for one in fresh.run(create(ecc()))] == [0x80000000] * 2
