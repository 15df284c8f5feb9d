"""Tests of SEV-SNP reports: signature, guest policy, TCB and configuration document."""

import json
import pickle
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone

import pytest

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS, AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.platforms.snp.authenticator import Snp
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

TIME = datetime(2026, 11, 1, tzinfo=timezone.utc)
VLEK_KEY = (0b00100).to_bytes(4, "little")
every_nth_byte = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


def load_dstack_evidence() -> SevSnp:
    """Return the evidence of a dstack guest, with certificates in DER."""
    content = json.loads(data("dstack/verifier/sev-snp-attestation.json"))["attestation"]
    platform = Attestation.from_bytes(bytes.fromhex(content)).evidence.platform
    assert isinstance(platform, SevSnp)
    chain = tuple([split_pem(pem.decode())[0] for pem in platform.cert_chain])
    return platform._replace(cert_chain=chain)


def load_virtee_evidence() -> SevSnp:
    """Return a version 2 report of a Milan guest, with its certificates."""
    return SevSnp(
        bytes.fromhex(data("snp/virtee-sev/report_milan.hex").decode().strip()),
        (data("snp/virtee-sev/cert_chain_milan"), data("snp/virtee-sev/vcek_milan.der")),
        "",
    )


def load_go_sev_guest_evidence() -> SevSnp:
    """Return another one, whose guest policy allows debugging."""
    return SevSnp(
        data("snp/go-sev-guest/attestation.bin"),
        (data("snp/go-sev-guest/milan.testcer"), data("snp/go-sev-guest/vcek.testcer")),
        "",
    )


def flip_byte(raw: bytes, at: int) -> bytes:
    """Return `raw` with one bit of a byte flipped."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def get_rejection(
    platform: SevSnp, anchor: bytes | None = None, now: datetime = amd.NOW
) -> VerificationError:
    """Return the error for rejected evidence."""
    with pytest.raises(VerificationError) as caught:
        Snp(anchor).authenticate(platform, now)
    assert caught.value.reason
    return caught.value


def get_simulated_rejection(platform: SevSnp) -> VerificationError:
    """Return the error for rejected evidence under the simulated root."""
    return get_rejection(platform, amd.ark())


@needs_shared
def test_snp_authenticates_dstack_evidence() -> None:
    """Report, chain and configuration document of dstack verify; the TCB versions differ."""
    platform = load_dstack_evidence()
    found = Snp().authenticate(platform, TIME)
    assert found.status is TcbStatus.OUT_OF_DATE
    assert found.report_data.rstrip(b"\0") == b"attest-test-fixture-2026"
    assert found.device == b""
    assert found.advisory_ids == ()
    levels = (("boot_loader", 4), ("tee", 0), ("snp", 23), ("microcode", 213))
    assert found.tcb.components == levels
    assert found.chain == (platform.cert_chain[1], platform.cert_chain[0], AMD_ROOTS["Milan"])
    steps = " / ".join(map(str, found.steps))
    assert "HOST_DATA is the hash" in steps
    assert "revocation was not checked" in steps
    assert "current, committed, launch differ" in steps


@needs_shared
def test_snp_without_certificates_names_kds_url() -> None:
    """Certificates may be passed; without them the error contains AMD's KDS URL."""
    capture = data("dstack/dstack-attest/sev_snp_attestation.bin")
    platform = Attestation.from_bytes(capture).evidence.platform
    assert isinstance(platform, SevSnp)
    pems = [data(f"dstack/dstack-attest/sev_snp_{name}.pem") for name in ("vcek", "ask")]
    assert Snp(certificates=pems).authenticate(platform, TIME) == Snp().authenticate(
        load_dstack_evidence(), TIME
    )
    with raises(CollateralError, "missing") as caught:
        Snp().authenticate(platform, TIME)
    chip_id = platform.report[0x1A0:0x1E0].hex()
    assert (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{chip_id}?blSPL=4&teeSPL=0&snpSPL=23&ucodeSPL=213"
        in str(caught.value)
    )
    with raises(
        CollateralError, "missing", part="https://kdsintf.amd.com/vcek/v1/Milan/cert_chain"
    ):
        Snp(certificates=pems[:1]).authenticate(platform, TIME)


@needs_shared
def test_snp_version_2_report_takes_product_from_certificate() -> None:
    """The product of a version 2 report is read from the certificate."""
    found = Snp().authenticate(load_virtee_evidence(), TIME)
    assert found.status is TcbStatus.UP_TO_DATE
    assert "of a Milan processor" in " ".join(map(str, found.steps))
    assert "HOST_DATA was not compared" in " ".join(map(str, found.steps))
    with raises(CollateralError, "missing", part="<Milan or Genoa>") as caught:
        Snp().authenticate(load_virtee_evidence()._replace(cert_chain=()), TIME)
    assert "blSPL=3&teeSPL=0&snpSPL=8" in str(caught.value)


@needs_shared
def test_snp_debuggable_guest_is_rejected() -> None:
    """A guest whose policy allows debugging is rejected after its signature was verified."""
    error = get_rejection(load_go_sev_guest_evidence(), now=TIME)
    assert isinstance(error, PolicyError)
    assert error.reason == "debug"
    assert any("signature is valid" in step.text for step in error.steps)


@needs_shared
@every_nth_byte
@pytest.mark.parametrize(
    "platform", [load_dstack_evidence, load_virtee_evidence, load_go_sev_guest_evidence]
)
def test_snp_report_with_changed_byte_is_rejected(
    platform: Callable[[], SevSnp], every: int
) -> None:
    """A change of any of the 1184 bytes is rejected."""
    genuine, snp = platform(), Snp()
    for at in limited(range(0, 1184, every)):
        tampered = genuine._replace(report=flip_byte(genuine.report, at))
        with pytest.raises((FormatError, SignatureError, UnsupportedError)):
            snp.authenticate(tampered, TIME)


@needs_shared
@every_nth_byte
@pytest.mark.parametrize("index", [0, 1])
def test_snp_certificate_with_changed_byte_is_rejected(index: int, every: int) -> None:
    """A byte changed in the ASK or VCEK certificate is rejected."""
    genuine, snp = load_dstack_evidence(), Snp()
    der = genuine.cert_chain[index]
    for at in limited(range(0, len(der), every)):
        chain = list(genuine.cert_chain)
        chain[index] = flip_byte(der, at)
        with pytest.raises((SignatureError, CollateralError)):
            snp.authenticate(genuine._replace(cert_chain=tuple(chain)), TIME)


@needs_shared
def test_snp_chain_validity_is_inclusive() -> None:
    """The first and last second of validity are inclusive."""
    genuine = load_dstack_evidence()
    first = datetime(2026, 6, 17, 1, 5, 4, tzinfo=timezone.utc)
    last = datetime(2033, 6, 17, 1, 5, 4, tzinfo=timezone.utc)
    for now in (first, last):
        Snp().authenticate(genuine, now)
    for now in (first - timedelta(seconds=1), last + timedelta(seconds=1)):
        error = get_rejection(genuine, now=now)
        assert isinstance(error, CollateralExpiredError)
        assert error.reason == "cert_expired"
        assert "the VCEK is valid from 2026-06-17 01:05:04" in str(error)


@needs_shared
def test_snp_trust_anchor_replaces_amd_roots() -> None:
    """A trust anchor replaces AMD's roots; `genuine` is true for AMD's roots only."""
    genuine = load_dstack_evidence()
    assert get_rejection(genuine, amd.ark(), TIME).reason == "untrusted_root"
    assert get_rejection(genuine, AMD_ROOTS["Genoa"], TIME).reason == "untrusted_root"
    assert Snp(AMD_ROOTS["Milan"]).authenticate(genuine, TIME).chain[2] == AMD_ROOTS["Milan"]
    assert Snp(AMD_ROOTS["Milan"]).genuine
    assert Snp().genuine
    assert not Snp(amd.ark()).genuine
    assert not Snp(AWS_ROOT).genuine
    assert get_rejection(genuine, AWS_ROOT, TIME).reason == "untrusted_root"


def test_snp_authenticates_simulated_evidence() -> None:
    """Simulated evidence verifies under the simulated root only."""
    found = Snp(amd.ark()).authenticate(amd.evidence(), amd.NOW)
    assert found.status is TcbStatus.UP_TO_DATE
    assert found.report_data == bytes(range(64))
    assert found.chain == (amd.vcek(), amd.ask(), amd.ark())
    # The names are those of AMD's chain, the key is not.
    error = get_rejection(amd.evidence())
    assert error.reason == "untrusted_root"
    assert "AMD's root for " in str(error)
    assert "pass the simulator's root as trust anchor" in str(error)


def test_snp_authenticates_vlek_report() -> None:
    """A VLEK certificate of a provider verifies under the CA for VLEKs."""
    raw = amd.report({0x48: VLEK_KEY})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw, (amd.asvk(), amd.vlek())), amd.NOW)
    assert found.chain == (amd.vlek(), amd.asvk(), amd.ark())
    assert "a-provider" in " ".join(map(str, found.steps))
    table = amd.table(vlek=amd.vlek(), ask=amd.asvk())
    assert Snp(amd.ark()).authenticate(amd.evidence(raw, (table,)), amd.NOW) == found
    with raises(CollateralError, "missing", part="get the VLEK certificate from the host"):
        Snp(amd.ark()).authenticate(amd.evidence(raw, ()), amd.NOW)
    with raises(
        CollateralError, "missing", start="ASVK certificate", part="/vlek/v1/Milan/cert_chain"
    ):
        Snp(amd.ark()).authenticate(amd.evidence(raw, (amd.vlek(), amd.ask())), amd.NOW)


def test_snp_authenticates_turin_report() -> None:
    """Turin has an 8-byte chip id and another order of TCB components."""
    own = amd.extensions("Turin", amd.TURIN_SPLS, amd.TURIN_CHIP)
    chain = (amd.ask("Turin"), amd.leaf(own, "SEV-Turin"))
    changes = dict.fromkeys(amd.TCB_VERSIONS, amd.TURIN_TCB)
    changes |= {0x188: bytes((0x1A, 2, 1)), 0x1A0: amd.TURIN_CHIP + bytes(56)}
    found = Snp(amd.ark()).authenticate(amd.evidence(amd.report(changes), chain), amd.NOW)
    assert found.tcb.components == (
        ("boot_loader", 2),
        ("tee", 3),
        ("snp", 4),
        ("microcode", 213),
        ("fmc", 1),
    )
    with raises(CollateralError, "missing", part="Turin/0102030405060708?fmcSPL=1&blSPL=2"):
        Snp().authenticate(amd.evidence(amd.report(changes), ()), amd.NOW)
    older = amd.report({**changes, 0x188: bytes(3)}, version=2)
    Snp(amd.ark()).authenticate(amd.evidence(older, chain), amd.NOW)
    with raises(CollateralError, "missing", part="Turin/0102030405060708?fmcSPL=1&blSPL=2"):
        Snp().authenticate(amd.evidence(older, ()), amd.NOW)
    assert get_rejection(amd.evidence(older), amd.ark()).reason == "product_mismatch"


@every_case(
    ("changes", "reason"),
    [
        ({0x30: b"\1"}, "vmpl"),
        ({0x08: (0xB_0000).to_bytes(8, "little")}, "debug"),
        ({0x08: (0x7_0000).to_bytes(8, "little")}, "migration_agent"),
        ({0x48: b"\2"}, "chip_key_masked"),
        ({0x08: (0x2_0000).to_bytes(8, "little")}, "smt"),
        ({0x08: (0x83_0000).to_bytes(8, "little")}, "rapl"),
        ({0x08: (0x103_0000).to_bytes(8, "little")}, "ciphertext_hiding"),
    ],
)
def test_snp_guest_policy_violation_is_rejected(changes: Mapping[int, bytes], reason: str) -> None:
    """Each rule of guest policy has its reason, and is checked after the signature."""
    error = get_simulated_rejection(amd.evidence(amd.report(changes)))
    assert isinstance(error, PolicyError)
    assert error.reason == reason
    assert any("the report's signature is valid" in step.text for step in error.steps)


@every_case(
    ("policy", "info"),
    [(0x2_0000, 0b0), (0x83_0000, 0b1001), (0x103_0000, 0b10001), (0x3_0000, 0b0)],
)
def test_snp_platform_meets_guest_policy(policy: int, info: int) -> None:
    """A guest policy on SMT, RAPL or ciphertext hiding passes if the platform complies."""
    raw = amd.report({0x08: policy.to_bytes(8, "little"), 0x40: bytes([info])})
    Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)


def test_snp_masked_chip_id_is_reported() -> None:
    """A masked chip id is accepted and reported in the steps."""
    raw = amd.report({0x1A0: bytes(64)})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)
    assert any("hidden" in step.text for step in found.steps)
    with raises(CollateralError, "missing", part="the host masks the chip id"):
        Snp(amd.ark()).authenticate(amd.evidence(raw, ()), amd.NOW)


@pytest.mark.parametrize("at", [0x038, 0x1E0, 0x1F0])
def test_snp_different_tcb_versions_are_out_of_date(at: int) -> None:
    """Current, committed and launch TCB must equal the reported TCB for UpToDate."""
    raw = amd.report({at: bytes((4, 0, 0, 0, 0, 0, 22, 213))})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)
    assert found.status is TcbStatus.OUT_OF_DATE


def test_snp_host_data_must_be_hash_of_mr_config() -> None:
    """HOST_DATA must be the hash of the configuration document, if present."""
    document = '{"version":3}'
    raw = amd.report({0xC0: host_data(document)})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw, mr_config=document), amd.NOW)
    assert any(step.check == "host_data" and step.outcome == "passed" for step in found.steps)
    error = get_simulated_rejection(amd.evidence(raw, mr_config=document + " "))
    assert isinstance(error, ReplayError)
    assert error.reason == "host_data_mismatch"


def test_snp_pickle_round_trip() -> None:
    """An unpickled authenticator returns the same result."""
    snp = pickle.loads(pickle.dumps(Snp(amd.ark(), certificates=[amd.vcek(), amd.ask()])))
    found = snp.authenticate(amd.evidence(chain=()), amd.NOW)
    assert found == Snp(amd.ark()).authenticate(amd.evidence(), amd.NOW)
