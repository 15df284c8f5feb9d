"""First use: the program that was accepted first is required afterwards, as the file says."""

import fcntl
import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attestkit
from attestkit.client.proofs.first_use import MAX_FILE, FirstUse, read_pins
from attestkit.client.proofs.trust import VerifiedMachine
from attestkit.errors import ConfigError, FormatError, PolicyError, ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.client.proofs.saved_proofs import saved_proof
from tests.processes import opened_in_child
from tests.raising import raises

OTHER_APP = b'{"manifest_version":2,"name":"other","runner":"bash"}'
SUBJECT = "https://a.example attestkit"


def machine(role: str = "server") -> VerifiedMachine:
    """Return a machine that was verified."""
    return saved_proof().proof.machines[0]._replace(role=role)


def connect(server: AttestedServer, pins: Path, url: str | None = None) -> attestkit.client.Proof:
    """Return the proof of a server by its first use."""
    with attestkit.connect(
        url or server.url,
        policy="first-use",
        pins=pins,
        server_ca=server.ca,
        trust_anchor=server.tee.trust_anchor,
        collateral=server.tee.collateral,
    ) as endpoint:
        return endpoint.proof


def test_same_program_is_accepted_again(tmp_path: Path) -> None:
    """The file is written once, for its owner alone; the proof says what this shows."""
    pins = tmp_path / "pins.json"
    with AttestedServer() as server:
        assert "first use" in str(connect(server, pins))
        content = pins.read_bytes()
        assert pins.stat().st_mode & 0o777 == 0o600
        server.rotate()
        proof = connect(server, pins)
    assert pins.read_bytes() == content
    assert any("first use" in text for text in proof.not_proven)
    assert proof.code == "policy"


def test_another_program_is_refused(tmp_path: Path) -> None:
    """A server with another app at the same origin is refused, with what to do."""
    pins = tmp_path / "pins.json"
    with AttestedServer() as server, AttestedServer(app_compose=OTHER_APP) as other:
        connect(server, pins)
        content = json.loads(pins.read_text())
        content["pins"] = {
            name.replace(server.url, other.url): text for name, text in content["pins"].items()
        }
        pins.write_text(json.dumps(content))
        before = pins.read_bytes()
        with pytest.raises(PeerRefusedError) as caught:
            connect(other, pins)
        assert caught.value.reason == "identity"
        assert str(pins) in str(caught.value)
        assert isinstance(caught.value.__cause__, ServiceError)
        assert isinstance(caught.value.__cause__.__cause__, PolicyError)
        assert other.requests == []
    assert pins.read_bytes() == before


def use(first: FirstUse, *roles: str, error: PolicyError | None = None) -> list[Any]:
    """Verify machines of these roles, or refuse them; return the policies that were asked for."""
    asked: list[Any] = []

    def verify(role: str, policy: Any) -> VerifiedMachine:
        asked.append(policy)
        if error is not None:
            raise error
        return machine(role)

    first.verify([(role, partial(verify, role)) for role in roles or ("server",)])
    return asked


def test_origins_and_roles_are_apart(tmp_path: Path) -> None:
    """Each machine of each server has a policy of its own."""
    pins = tmp_path / "pins.json"
    first, second = FirstUse(pins, SUBJECT), FirstUse(pins, "https://b.example attestkit")
    assert use(first, "gateway", "model a") == [None, None]
    assert None not in use(first, "gateway")
    assert use(second, "gateway") == [None]
    assert set(json.loads(pins.read_text())["pins"]) == {
        f"{SUBJECT} gateway",
        f"{SUBJECT} model a",
        "https://b.example attestkit gateway",
    }


def test_kept_policy_is_not_replaced(tmp_path: Path) -> None:
    """The first policy is kept; later calls change nothing."""
    pins = tmp_path / "pins.json"
    first = FirstUse(pins, SUBJECT)
    use(first)
    content = pins.read_bytes()
    use(first)
    assert pins.read_bytes() == content


def test_state_of_the_platform_is_no_change_of_program(tmp_path: Path) -> None:
    """A refusal for the TCB's status is reported unchanged, as is one without a first use."""
    pins = tmp_path / "pins.json"
    first = FirstUse(pins, SUBJECT)
    status = PolicyError("out of date", reason="tcb_status")
    app = PolicyError("another", reason="app_id")
    with pytest.raises(PolicyError):
        use(first, error=app)
    use(first)
    with pytest.raises(PolicyError):
        use(first, error=status)
    with raises(ServiceError, "identity"):
        use(first, error=app)


def test_uses_at_the_same_time_agree(tmp_path: Path) -> None:
    """A machine is verified by the policy that another process has stored meanwhile."""
    pins = tmp_path / "pins.json"
    asked: list[Any] = []

    def verify(policy: Any) -> VerifiedMachine:
        if not asked:  # another process is faster
            use(FirstUse(pins, SUBJECT))
        asked.append(policy)
        return machine()

    FirstUse(pins, SUBJECT).verify([("server", verify)])
    assert asked[0] is None
    assert asked[1] is not None

    def refuse(policy: Any) -> VerifiedMachine:
        if policy is None:
            use(FirstUse(pins, "https://c.example attestkit"))
            return machine()
        raise PolicyError("another", reason="app_id")

    with raises(ServiceError, "identity"):
        FirstUse(pins, "https://c.example attestkit").verify([("server", refuse)])


_MANY: Final = """
import sys
from pathlib import Path
from attestkit.client.proofs.first_use import FirstUse
from tests.client.proofs.saved_proofs import saved_proof

found = saved_proof().proof.machines[0]
for at in range(20):
    FirstUse(Path(sys.argv[1]), f"https://{sys.argv[2]}-{at} x").verify(
        [(found.role, lambda policy: found)]
    )
"""


@pytest.mark.slow
def test_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """Several processes that write the file at once all find their pins in it."""
    pins = tmp_path / "pins.json"
    words = [sys.executable, "-c", _MANY, str(pins)]
    with ExitStack() as stack:
        running = [stack.enter_context(subprocess.Popen([*words, name])) for name in "abc"]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(read_pins(pins.read_bytes())) == 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "syntax"),
        (b"[]", "wrong_type"),
        (b"{}", "unsupported_version"),
        (b'{"version":true,"pins":{}}', "unsupported_version"),
        (b'{"version":2,"pins":{}}', "unsupported_version"),
        (b'{"version":1}', "missing"),
        (b'{"version":1,"pins":{},"x":1}', "unknown_key"),
        (b'{"version":1,"pins":[]}', "wrong_type"),
        (b'{"version":1,"pins":{"a":1}}', "wrong_type"),
        (b'{"version":1,"version":1,"pins":{}}', "duplicate"),
        (b"\xff", "encoding"),
        (b" " * (MAX_FILE + 1), "too_large"),
    ],
)
def test_malformed_file(tmp_path: Path, content: bytes, reason: str) -> None:
    """It is an error of configuration that names the file, and never a first use."""
    pins = tmp_path / "pins.json"
    pins.write_bytes(content)
    with raises(ConfigError, reason, start=str(pins)):
        use(FirstUse(pins, SUBJECT))
    assert pins.read_bytes() == content


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """No beginning of a file is read as one with fewer pins."""
    pins = tmp_path / "pins.json"
    use(FirstUse(pins, SUBJECT))
    content = pins.read_bytes().rstrip()
    assert read_pins(content)
    for length in range(len(content)):
        with pytest.raises(FormatError):
            read_pins(content[:length])


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40)))
def test_pins_survive(pins: dict[str, str]) -> None:
    """Any names and texts."""
    assert read_pins(json.dumps({"version": 1, "pins": pins}).encode()) == pins


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Neither a folder nor a policy that is malformed counts as no policy."""
    with raises(ConfigError, "unreadable"):
        use(FirstUse(tmp_path, SUBJECT))
    with raises(ConfigError, "unwritable"):
        use(FirstUse(tmp_path / "missing" / "pins.json", SUBJECT))
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"version": 1, "pins": {f"{SUBJECT} server": "= nonsense"}}))
    with pytest.raises(ConfigError, match=r"pins\.json"):
        use(FirstUse(pins, SUBJECT))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"policy": "first-use"}, "missing"),
        ({"policy": "hardware-only", "pins": "pins.json"}, "conflict"),
        ({"policy": "first-use", "pins": 1}, "wrong_type"),
    ],
)
def test_pins_belong_to_first_use(options: dict[str, Any], reason: str) -> None:
    """One without the other is refused before any connection."""
    with raises(UsageError, reason):
        attestkit.connect("https://127.0.0.1:1", **options)


def test_lock_ends_although_a_child_was_forked_meanwhile(tmp_path: Path) -> None:
    """Else the next proofs of all processes wait as long as the child runs."""
    pins = FirstUse(tmp_path / "pins.json", SUBJECT)
    with ExitStack() as stack:
        with pins._locked():
            stack.enter_context(opened_in_child())
        with Path(f"{tmp_path}/pins.json.lock").open() as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
