"""Evidence from bytes to values, and what a verifier asks of it before it judges.

Each group is one piece of work; compare inside a group, in one run. Beside attestkit stands what
the same would take at the least, without most of the checks: msgspec's decoder and a loop over
struct for reading, hashlib for digests, json for the configuration.

Run `pytest benchmarks/test_evidence.py -s`: the last test prints what everything between the bytes
and the relying party's rules takes beside dcap-qvl's verification of the same quote.
"""

import hashlib
import json
import struct
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import dcap_qvl  # type: ignore[import-untyped]  # it ships no types
import msgspec.msgpack
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import attestkit
from attestkit import AppInfo, Attestation
from attestkit.attestation import Encoding, os_image, tdx_launch, vm_config
from attestkit.attestation.platforms import Evidence, Tdx
from attestkit.attestation.vm_config import VmConfig
from attestkit.backends.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable

AT: Final = 1790000000
BACKEND: Final = Simulator(seed=bytes(32))
with attestkit.open("simulator", seed=bytes(32)) as attester:
    MADE: Final = attester.attest(b"benchmark")
ENCODINGS: Final[tuple[Encoding, ...]] = ("v0", "v1", "cbor")
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
    vm_config._parse_again,  # noqa: SLF001 - to measure without what is remembered
    os_image._known_tdx_image,  # noqa: SLF001 - the same
    tdx_launch._replay,  # noqa: SLF001 - the same
    tdx_launch.td_hob_digest,
)


def forget() -> None:
    """Forget configurations and images, as if the next evidence were the first of its image."""
    for function in REMEMBERED:
        function.cache_clear()


@pytest.mark.parametrize("how", [*ENCODINGS, "struct, log alone", "msgspec"])
def test_read(benchmark: BenchmarkFixture, how: str) -> None:
    """Evidence bytes to values."""
    benchmark.group = "evidence: read"
    if how in ENCODED:
        assert benchmark(Attestation.from_bytes, ENCODED[how]) == MADE
    elif how == "msgspec":
        assert benchmark(msgspec.msgpack.decode, ENCODED["v1"])["version"] == 1
    else:
        assert benchmark(bare_scale, ENCODED["v0"]) == [event[:5] for event in WIRE]


@pytest.mark.parametrize("how", ["attestkit", "hashlib, RTMR3 alone"])
def test_log(benchmark: BenchmarkFixture, how: str) -> None:
    """The log held to the quote: digests of runtime events, rules, replay of four registers."""
    benchmark.group = "evidence: log"
    if how == "attestkit":
        assert benchmark(checked).event_log.replay() == RTMRS
    else:
        assert benchmark(bare_digests) == RTMRS[3]


@pytest.mark.parametrize("how", ["attestkit", "first of its image", "json and hashlib"])
def test_image(benchmark: BenchmarkFixture, how: str) -> None:
    """The image's registers computed and compared."""
    benchmark.group = "evidence: OS image"

    def bare() -> bytes:
        fields = json.loads(MADE.config)
        for digest in [event.digest for event in WIRE[:20]]:  # as many as go into RTMR 0 to 2
            hashlib.sha384(digest * 2).digest()
        return bytes.fromhex(fields["os_image_hash"])

    def first() -> bytes:
        forget()
        return os_image.verified_hash(EVIDENCE)

    work = {"attestkit": lambda: os_image.verified_hash(EVIDENCE), "first of its image": first}
    assert benchmark(work.get(how, bare)) == VmConfig.parse(MADE.config).os_image_hash


@pytest.mark.parametrize("how", ["attestkit", "log checked before", "json and hashlib"])
def test_identity(benchmark: BenchmarkFixture, how: str) -> None:
    """Who the app is, and the registers that sum it up."""
    benchmark.group = "evidence: identity"
    seen = checked()
    assert seen.runtime_events

    def bare() -> object:
        json.loads(MADE.config)
        return bare_digests()

    work: dict[str, Callable[[], object]] = {
        "attestkit": lambda: fresh().app_info(),
        "log checked before": seen.app_info,
    }
    assert benchmark(work.get(how, bare))


def everything(data: bytes) -> AppInfo:
    """Ask of evidence all that lies between its bytes and the relying party's rules."""
    found = Attestation.from_bytes(data)
    assert found.quote is not None
    found.event_log.check(found.quote, found.event_log.explained_registers())
    assert found.runtime_events == found.event_log.runtime
    os_image.verified_hash(found.evidence, quote=found.quote)
    return found.app_info()


def test_share(capsys: pytest.CaptureFixture[str]) -> None:
    """Print what that takes beside dcap-qvl's verification; they take turns, the best counts."""
    root, collateral = BACKEND.trust_anchor, BACKEND.collateral(AT).to_json()
    endorsements = dcap_qvl.QuoteCollateralV3.from_json(collateral)

    def peer() -> object:
        return dcap_qvl.verify_with_root_ca(QUOTE, endorsements, root, AT)

    def first() -> object:
        forget()
        return everything(ENCODED["v0"])

    works: dict[str, Callable[[], object]] = {"dcap-qvl": peer, "first of its image, v0": first}
    works |= {name: partial(everything, data) for name, data in ENCODED.items()}
    best = dict.fromkeys(works, float("inf"))
    for _ in range(200):
        for name, work in works.items():
            start = perf_counter_ns()
            work()
            best[name] = min(best[name], (perf_counter_ns() - start) / 1000)
    with capsys.disabled():
        for name, took in best.items():
            print(f"\n{name}: {took:.0f} us, {took / best['dcap-qvl']:.2f} of dcap-qvl", end="")
    assert best["v0"] < best["dcap-qvl"]
