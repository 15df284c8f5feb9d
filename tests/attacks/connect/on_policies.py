"""Attempts on what connect accepts: policies, requirements, pins of first use, and the verifier."""

import os
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit.client.proofs.appraisal import Require
from attestkit.client.proofs.first_use import FirstUse
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.server_verifier import MAX_KEYS, REFUSALS
from attestkit.client.proofs.trust import Trust
from attestkit.client.services.service import Binding, Claims, Machine
from attestkit.client.wire.steps import drive
from attestkit.errors import (
    AttestKitError,
    ConfigError,
    PolicyError,
    ServiceError,
    UsageError,
)
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import AppraisalPolicy, ReferenceValues, TcbStatus, Verifier
from tests.attacks.attempts import Surfaces
from tests.client.proofs.saved_proofs import saved_proof
from tests.client.proofs.stub_proofs import Channel, Rig, peer_of, proof_of

attacks = Surfaces("connect")
HASH: Final = bytes(32)
APP: Final = bytes(20)

# -- policies that look stricter than they are -----------------------------------------------------


def _rules(**rules: Any) -> AppraisalPolicy:
    return AppraisalPolicy(accepted_statuses=[TcbStatus.UP_TO_DATE], **rules)


def trust(policy: Any) -> Trust:
    """Use a policy for connect; one that names app and image is accepted."""
    named = _rules(app_id=[APP], os_image_hash=[HASH])
    assert Trust(named, {}, _now, fetches=False).code == "policy"
    return Trust(policy, {}, _now, fetches=False)


def _now() -> datetime:
    return datetime.now(timezone.utc)


_WEAK: Final[dict[str, Any]] = {
    "the app alone, as any image reports it": _rules(app_id=[APP]),
    "the compose file alone": _rules(compose_hash=[HASH]),
    "the image alone, which runs any app": _rules(os_image_hash=[HASH]),
    "the device": _rules(device_id=[HASH]),
    "registers of the firmware": _rules(
        app_id=[APP], reference_values=ReferenceValues(rtmr0=[bytes(48)])
    ),
    "a strict preset": AppraisalPolicy.strict(),
    "nothing, in a Verifier": Verifier(policy=AppraisalPolicy.default()),
    "the app for one role, and nothing for all others": {
        "server": _rules(app_id=[APP], os_image_hash=[HASH]),
        "*": AppraisalPolicy.default(),
    },
}
for _name, _policy in _WEAK.items():
    attacks.add(
        "confuse", f"policy that names {_name}", partial(trust, _policy), UsageError, "any_app"
    )

for _name, _policy in {
    "the word in another case": "Hardware-Only",
    "the word with a space": "hardware-only ",
    "the word as a policy of a role": {"*": "hardware-only"},
    "the word of first use as a policy of a role": {"server": "first-use"},
}.items():
    attacks.add(
        "confuse",
        f"policy that is {_name}",
        partial(trust, _policy),
        ConfigError,
        "unreadable",
        "not_found",
    )


@attacks.attempt("confuse", UsageError, "missing")
def policy_of_no_role() -> None:
    """An empty mapping would verify nothing."""
    trust({})


@attacks.attempt("confuse", UsageError, "missing")
def machine_of_a_role_without_a_policy() -> None:
    """A service names a role of its own."""
    found = trust({"gateway": _rules(app_id=[APP], os_image_hash=[HASH])})
    found.verify(Machine("model", b"", bytes(64)), _now(), gpu=False)


# -- requirements ----------------------------------------------------------------------------------

_TLS: Final = Binding("tls-spki", HASH, "server")


def require(found: Require, claims: Claims) -> None:
    """Check requirements; claims that have all are accepted."""
    whole = Claims((Machine("server", b"", bytes(64)),), (_TLS,), "nonce")
    Require().check(whole, whole.bindings, "service")
    found.check(claims, claims.bindings, "service")


_SERVER: Final = Machine("server", b"", bytes(64))
_GATEWAY: Final = Machine("gateway", b"", bytes(64))
_CLAIMS: Final[dict[str, tuple[Require, Claims, str]]] = {
    "possession of a key for a nonce": (
        Require(),
        Claims((_SERVER,), (_TLS,), "key possession"),
        "no_freshness",
    ),
    "no channel": (Require(), Claims((_SERVER,), (), "nonce"), "no_channel"),
    "a router for the model": (
        Require(),
        Claims((_SERVER,), (_TLS._replace(is_of="router"),), "nonce"),
        "ends_at_gateway",
    ),
    "GPUs of the gateway for those of the model": (
        Require(gpu=True),
        Claims((_GATEWAY, _SERVER), (_TLS,), "nonce"),
        "no_gpu",
    ),
    "no GPUs of a gateway alone": (
        Require(gpu=True, channel="gateway"),
        Claims((_GATEWAY,), (_TLS,), "nonce"),
        "no_gpu",
    ),
}
for _name, (_require, _found, _reason) in _CLAIMS.items():
    attacks.add(
        "confuse",
        f"service that shows {_name}",
        partial(require, _require, _found),
        ServiceError,
        _reason,
    )


# -- pins of first use -----------------------------------------------------------------------------

_SUBJECT: Final = "https://a.example attestkit"


def _first_use(pins: Path) -> None:
    """Verify a machine by first use; with a usable file it is kept."""
    FirstUse(pins.with_name("usable"), _SUBJECT).verify([("server", _machine)])
    started = time.monotonic()
    try:
        FirstUse(pins, _SUBJECT).verify([("server", _machine)])
    finally:
        assert time.monotonic() - started < 2


def _machine(policy: AppraisalPolicy | None) -> Any:
    del policy
    return saved_proof().proof.machines[0]


@attacks.attempt("exhaust", ConfigError, "unreadable")
def pins_that_are_a_pipe(tmp_path: Path) -> None:
    """Reading the pipe would block for ever."""
    os.mkfifo(tmp_path / "pins")
    _first_use(tmp_path / "pins")


@attacks.attempt("exhaust", ConfigError, "unreadable")
def pins_that_are_an_endless_device(tmp_path: Path) -> None:
    """A link to a device without end."""
    (tmp_path / "pins").symlink_to("/dev/zero")
    _first_use(tmp_path / "pins")


@attacks.attempt("confuse", ConfigError, "unwritable")
def lock_of_the_pins_that_is_a_link(tmp_path: Path) -> None:
    """A file of the user's would be created or opened elsewhere."""
    (tmp_path / "pins.lock").symlink_to(tmp_path / "elsewhere")
    try:
        _first_use(tmp_path / "pins")
    finally:
        assert not (tmp_path / "elsewhere").exists()
        assert not (tmp_path / "pins").exists()


def _with_pins(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pins").write_bytes(content)
    _first_use(tmp_path / "pins")


for _name, _content, _reason in (
    ("two lists", b'{"version":1,"pins":{},"pins":{}}', "duplicate"),
    ("one name twice", b'{"version":1,"pins":{"a b c":"","a b c":""}}', "duplicate"),
    ("a version that is true", b'{"version":true,"pins":{}}', "unsupported_version"),
    ("a version without pins", b'{"version":1}', "missing"),
    ("nothing", b"", "syntax"),
    ("levels without end", b'{"version":1,"pins":' + b"[" * 100_000, "too_deep"),
):
    attacks.add(
        "confuse",
        f"pins with {_name}",
        partial(_with_pins, _content),
        ConfigError,
        _reason,
    )


@attacks.attempt("recombine", ServiceError, "identity")
def program_that_changes_behind_a_kept_name(tmp_path: Path) -> None:
    """The policy of the first use is asked, and the error names the file."""
    pins = tmp_path / "pins"
    FirstUse(pins, _SUBJECT).verify([("server", _machine)])
    before = pins.read_bytes()

    def other(policy: AppraisalPolicy | None) -> Any:
        assert policy is not None
        raise PolicyError("another program", reason="app_id")

    try:
        FirstUse(pins, _SUBJECT).verify([("server", other)])
    finally:
        assert pins.read_bytes() == before


# -- the server verifier -------------------------------------------------------------------------


def _proven() -> Rig:
    """Return a server verifier that has proven the key `a`."""
    rig = Rig()
    drive(rig.server_verifier.steps(peer_of(b"a")), Channel())
    assert rig.server_verifier.accepts(peer_of(b"a"))
    return rig


@attacks.attempt("replay")
def clock_that_is_set_back_prolongs_no_proof() -> None:
    """The end of a proof is measured by the monotonic clock."""
    rig = _proven()
    rig.clock.now = lambda: datetime(2000, 1, 1, tzinfo=timezone.utc)  # type: ignore[method-assign]
    rig.clock.seconds += 3600
    assert not rig.server_verifier.accepts(peer_of(b"a"))
    assert rig.server_verifier.newest is None


@attacks.attempt("replay")
def proof_at_the_instant_of_its_end() -> None:
    """It is over then, and was valid before."""
    rig = _proven()
    rig.clock.seconds += 3599.999
    assert rig.server_verifier.accepts(peer_of(b"a"))
    rig.clock.seconds += 0.001
    assert not rig.server_verifier.accepts(peer_of(b"a"))


@attacks.attempt("relay")
def certificate_whose_hash_is_a_proven_key() -> None:
    """A key or certificate that has the hash of a proven key, or part of it, is not that key."""
    rig = _proven()
    digest = peer_of(b"a").spki_sha256
    for one in (b"b", digest, digest[:16], digest + b"\0", b"", digest.hex().encode()):
        assert not rig.server_verifier.accepts(peer_of(one))
        assert not rig.server_verifier.accepts(peer_of(b"b")._replace(certificate=one))


@attacks.attempt("relay", PeerRefusedError, "other_key")
def evidence_about_another_key_than_that_of_the_connection() -> None:
    """The service of a plugin forgets to compare."""
    rig = _proven()
    rig.appraiser.judge = lambda _: proof_of(peer_of(b"a").spki_sha256, at=rig.clock.now())
    drive(rig.server_verifier.steps(peer_of(b"b")), Channel())


@attacks.attempt("exhaust", PeerRefusedError, "refused_recently")
def hostile_network_makes_the_client_hammer_a_service() -> None:
    """After three refusals no question is asked for a while."""
    rig = _proven()
    rig.server_verifier.forget()

    def refuse(_: object) -> Proof:
        raise ServiceError("not this one", reason="other_key")

    rig.appraiser.judge = refuse
    channels = [Channel() for _ in range(20)]
    error: AttestKitError | None = None
    for number, channel in enumerate(channels):
        try:
            drive(rig.server_verifier.steps(peer_of(b"%d" % number)), channel)
        except PeerRefusedError as found:
            error = found
    assert sum(bool(channel.sent) for channel in channels) == REFUSALS
    assert error is not None
    raise error


@attacks.attempt("exhaust")
def proofs_of_keys_without_end() -> None:
    """A server with a new key for each connection fills no memory."""
    rig = _proven()
    for number in range(MAX_KEYS + 20):
        drive(rig.server_verifier.steps(peer_of(b"%d" % number)), Channel())
    assert not rig.server_verifier.accepts(peer_of(b"a"))
    assert rig.server_verifier.accepts(peer_of(b"%d" % (MAX_KEYS + 19)))
    accepted = [rig.server_verifier.accepts(peer_of(b"%d" % n)) for n in range(MAX_KEYS + 20)]
    assert sum(accepted) == MAX_KEYS
