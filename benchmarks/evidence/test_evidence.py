"""Evidence from bytes to values, and what a verifier asks of it before it judges.

Beside attestkit stands what the same would take at the least, without most of the checks: msgspec's
and cbor2's decoders and a loop over struct for reading, cbor2 for writing, hashlib for digests,
json for the configuration. The last row is everything between the bytes and the relying party's
rules, beside dcap-qvl's verification of the same quote.
"""

import hashlib
import json
import struct
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import cbor2
import msgspec.msgpack
from pytest_benchmark.fixture import BenchmarkFixture

import attestkit
from attestkit import Attestation
from attestkit.attestation import AppInfo, Encoding
from attestkit.attestation.launch import os_image, tdx, vm_config
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.backends.simulator import Simulator
from benchmarks.cases import OURS
from benchmarks.racing import Entry, Ledger, each, own_row, play

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcap_qvl import QuoteCollateralV3

AT: Final = 1790000000
BACKEND: Final = Simulator(seed=bytes(32))
with attestkit.open("simulator", seed=bytes(32)) as attester:
    MADE: Final = attester.attest(report_data=b"benchmark", pad=True)
ENCODINGS: Final[tuple[Encoding, ...]] = ("v0", "v1", "v1-cbor", "cbor-tag", "cbor")
ENCODED: Final = {encoding: MADE.to_bytes(encoding) for encoding in ENCODINGS}
EVIDENCE: Final[Evidence] = MADE.evidence
QUOTE, WIRE = Tdx(*EVIDENCE.platform)
RUNTIME: Final = EVIDENCE.stack.runtime_events
RTMRS: Final = MADE.event_log.replay()
HEAD: Final = struct.Struct("<II")


def bare_scale(data: bytes) -> list[tuple[Any, ...]]:
    """Cut a log out of SCALE with struct and slices, lengths of one or two bytes."""

    def blob(at: int) -> tuple[bytes, int]:
        size, at = data[at], at + 1
        if size & 3:
            size, at = size | data[at] << 8, at + 1
        end = at + (size >> 2)
        return data[at:end], end

    _, at = blob(2)
    count, at = data[at] >> 2, at + 1
    found = []
    for _ in range(count):
        imr, event_type = HEAD.unpack_from(data, at)
        digest, at = blob(at + 8)
        name, at = blob(at)
        payload, at = blob(at)
        found.append((imr, event_type, digest, name.decode(), payload))
    return found


def bare_cmw(data: bytes) -> object:
    """Read a message and what it holds with cbor2, which asks nothing of either."""
    return cbor2.loads(cbor2.loads(data).value)


def bare_cmw_writer() -> "Callable[[], bytes]":
    """Return what writes the same objects with cbor2."""
    tag = cbor2.loads(ENCODED["cbor-tag"]).tag
    values = bare_cmw(ENCODED["cbor-tag"])
    return lambda: cbor2.dumps(cbor2.CBORTag(tag, cbor2.dumps(cbor2.CBORTag(55799, values))))


def bare_digests() -> bytes:
    """Hash and fold the runtime events as one writes it in Python."""
    register = bytes(48)
    for event in RUNTIME:
        preimage = b"\1\0\0\x08:%b:%b" % (event.event.encode(), event.payload)
        digest = hashlib.sha384(preimage).digest()
        register = hashlib.sha384(register + digest).digest()
    return register


def fresh() -> Attestation:
    """Return the evidence as if it had just been read: nothing of it has been asked yet."""
    return Attestation(EVIDENCE)


def checked() -> Attestation:
    """Hold the log to the quote, which parses both."""
    found = fresh()
    assert found.quote is not None
    found.event_log.check(found.quote)
    return found


REMEMBERED: Final = (
    vm_config._parse_cached,
    os_image._cached_tdx_launch,
    tdx._replay,
    tdx.td_hob_digest,
)


def forget() -> None:
    """Forget configurations and images, as if the next evidence were the first of its image."""
    for function in REMEMBERED:
        function.cache_clear()


def _read(encoding: Encoding) -> "Callable[[], object]":
    return partial(Attestation.from_bytes, ENCODED[encoding])


def _first_image() -> bytes:
    forget()
    return os_image.verify_os_image(EVIDENCE)


def _bare_image() -> bytes:
    """Read the configuration, and hash as often as RTMR 0 to 2 are extended."""
    fields = json.loads(MADE.config)
    for digest in [event.digest for event in WIRE[:20]]:
        hashlib.sha384(digest * 2).digest()
    return bytes.fromhex(fields["os_image_hash"])


def _bare_identity() -> bytes:
    json.loads(MADE.config)
    return bare_digests()


def everything(data: bytes) -> AppInfo:
    """Ask of evidence all that lies between its bytes and the relying party's rules."""
    found = Attestation.from_bytes(data)
    assert found.quote is not None
    found.event_log.check(found.quote, found.event_log.explained_registers())
    assert found.runtime_events == found.event_log.runtime
    os_image.verify_os_image(found.evidence, quote=found.quote)
    return found.app_info


def _first_of_its_image() -> AppInfo:
    forget()
    return everything(ENCODED["v0"])


@cache
def _collateral() -> "QuoteCollateralV3":
    from dcap_qvl import QuoteCollateralV3

    return QuoteCollateralV3.from_json(BACKEND.collateral(AT).to_json())


def signatures() -> object:
    """Verify the same quote with dcap-qvl; to find it again is nothing beside that."""
    from dcap_qvl import verify_with_root_ca

    found: object = verify_with_root_ca(QUOTE, _collateral(), BACKEND.trust_anchor, AT)
    return found


# What the same would take at the least has another result, and less of it.
ROWS: Final = (
    own_row("read-v0", "evidence v0, read", {OURS: _read("v0")}),
    own_row(
        "read-v1",
        "evidence v1, read",
        {OURS: _read("v1"), "msgspec": partial(msgspec.msgpack.decode, ENCODED["v1"])},
        lambda _: None,
    ),
    own_row(
        "read-cbor",
        "evidence in CBOR, read",
        {OURS: _read("v1-cbor"), "cbor2": partial(cbor2.loads, ENCODED["v1-cbor"])},
        lambda _: None,
    ),
    own_row(
        "read-cmw",
        "evidence in a tagged CMW, read",
        {
            OURS: _read("cbor-tag"),
            "cbor2": partial(bare_cmw, ENCODED["cbor-tag"]),
            "attestkit, what it holds": _read("v1-cbor"),
            "attestkit, a collection": _read("cbor"),
        },
        lambda _: None,
    ),
    own_row(
        "write-cmw",
        "evidence in a tagged CMW, written",
        {
            OURS: partial(MADE.to_bytes, "cbor-tag"),
            "cbor2": bare_cmw_writer(),
            "attestkit, what it holds": partial(MADE.to_bytes, "v1-cbor"),
            "attestkit, a collection": partial(MADE.to_bytes, "cbor"),
        },
        lambda _: None,
    ),
    own_row(
        "read-log",
        "evidence v0, read; struct reads its log alone",
        {OURS: _read("v0"), "struct": partial(bare_scale, ENCODED["v0"])},
        lambda _: None,
    ),
    own_row(
        "evidence-log",
        "evidence's log held to its quote; hashlib folds RTMR3 alone",
        {OURS: checked, "hashlib": bare_digests},
        lambda _: None,
    ),
    own_row(
        "evidence-image",
        "evidence's OS image held to its quote",
        {
            OURS: partial(os_image.verify_os_image, EVIDENCE),
            "json, hashlib": _bare_image,
            "attestkit, first of its image": _first_image,
        },
    ),
    own_row(
        "evidence-identity",
        "who the app is",
        {OURS: lambda: fresh().app_info, "json, hashlib": _bare_identity},
        lambda _: None,
    ),
    own_row(
        "evidence",
        "all of it, but for signatures",
        {
            OURS: partial(everything, ENCODED["v0"]),
            "dcap-qvl, the signatures": signatures,
            "attestkit, v1": partial(everything, ENCODED["v1"]),
            "attestkit, CBOR": partial(everything, ENCODED["v1-cbor"]),
            "attestkit, first of its image": _first_of_its_image,
        },
        lambda _: None,
    ),
)


@each(ROWS)
def test_evidence(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)


def test_values() -> None:
    """What is timed gives what it should."""
    for data in ENCODED.values():
        assert Attestation.from_bytes(data) == MADE
        assert everything(data) == fresh().app_info
    assert bare_cmw_writer()() == ENCODED["cbor-tag"]
    assert cbor2.loads(ENCODED["v1-cbor"]) == bare_cmw(ENCODED["cbor-tag"])
    assert bare_scale(ENCODED["v0"]) == [event[:5] for event in WIRE]
    assert bare_digests() == RTMRS[3]
    assert checked().event_log.replay() == RTMRS
    assert os_image.verify_os_image(EVIDENCE) == VmConfig.parse(MADE.config).os_image_hash
