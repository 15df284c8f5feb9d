"""An SEV-SNP report is believed if AMD signed it and nobody else may look into its guest."""

import json
import pickle
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS, AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.verifier.platforms.snp import Snp
from attestkit.verifier.result import TcbStatus
from tests.vectors import HAVE_SHARED, data, needs_shared
from tests.verifier.platforms import amd

AT = datetime(2026, 11, 1, tzinfo=timezone.utc)
VLEK_KEY = (0b00100).to_bytes(4, "little")


def dstack() -> SevSnp:
    """Return the evidence of a dstack guest, its certificates in DER."""
    content = json.loads(data("dstack/verifier/sev-snp-attestation.json"))["attestation"]
    platform = Attestation.from_bytes(bytes.fromhex(content)).evidence.platform
    assert isinstance(platform, SevSnp)
    chain = tuple([split_pem(pem.decode())[0] for pem in platform.cert_chain])
    return platform._replace(cert_chain=chain)


def virtee() -> SevSnp:
    """Return a version 2 report of a Milan guest, with its certificates."""
    return SevSnp(
        bytes.fromhex(data("snp/virtee-sev/report_milan.hex").decode().strip()),
        (data("snp/virtee-sev/cert_chain_milan"), data("snp/virtee-sev/vcek_milan.der")),
        "",
    )


def go_sev_guest() -> SevSnp:
    """Return another one, of a guest that may be debugged."""
    return SevSnp(
        data("snp/go-sev-guest/attestation.bin"),
        (data("snp/go-sev-guest/milan.testcer"), data("snp/go-sev-guest/vcek.testcer")),
        "",
    )


def changed(raw: bytes, at: int) -> bytes:
    """Return `raw` with one byte changed."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def refusal(
    platform: SevSnp, anchor: bytes | None = None, now: datetime = amd.NOW
) -> VerificationError:
    """Return with what evidence is refused."""
    with pytest.raises(VerificationError) as caught:
        Snp(anchor).authenticate(platform, now)
    assert caught.value.reason
    return caught.value


def made_refusal(platform: SevSnp) -> VerificationError:
    """Return with what evidence of the stand-in is refused, its root being trusted."""
    return refusal(platform, amd.ark())


@needs_shared
def test_the_evidence_of_dstack() -> None:
    """Report, chain and configuration document hold; the host reports less than it runs."""
    platform = dstack()
    found = Snp().authenticate(platform, AT)
    assert found.status is TcbStatus.OUT_OF_DATE
    assert found.report_data.rstrip(b"\0") == b"attest-test-fixture-2026"
    assert found.device == b""
    assert found.advisory_ids == ()
    levels = (("boot_loader", 4), ("tee", 0), ("snp", 23), ("microcode", 213))
    assert found.tcb.components == levels
    assert found.chain == (platform.cert_chain[1], platform.cert_chain[0], AMD_ROOTS["Milan"])
    told = " / ".join(found.steps)
    assert "HOST_DATA is the hash" in told
    assert "revocation was not looked at" in told
    assert "current, committed, launch differ" in told


@needs_shared
def test_evidence_without_certificates() -> None:
    """Certificates may be handed in; without them the error says where AMD has them."""
    capture = data("dstack/dstack-attest/sev_snp_attestation.bin")
    platform = Attestation.from_bytes(capture).evidence.platform
    assert isinstance(platform, SevSnp)
    pems = [data(f"dstack/dstack-attest/sev_snp_{name}.pem") for name in ("vcek", "ask")]
    assert Snp(certificates=pems).authenticate(platform, AT) == Snp().authenticate(dstack(), AT)
    with pytest.raises(CollateralError, match="the VCEK certificate of the report is missing") as e:
        Snp().authenticate(platform, AT)
    chip_id = platform.report[0x1A0:0x1E0].hex()
    assert (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{chip_id}?blSPL=4&teeSPL=0&snpSPL=23&ucodeSPL=213"
        in str(e.value)
    )
    with pytest.raises(CollateralError, match=r"the ASK.*kdsintf.amd.com/vcek/v1/Milan/cert_chain"):
        Snp(certificates=pems[:1]).authenticate(platform, AT)


@needs_shared
def test_the_report_of_virtee() -> None:
    """A version 2 report gets its product from the certificate, whose serial number is zero."""
    found = Snp().authenticate(virtee(), AT)
    assert found.status is TcbStatus.UP_TO_DATE
    assert "of a Milan processor" in " ".join(found.steps)
    assert "HOST_DATA was not compared" in " ".join(found.steps)
    with pytest.raises(CollateralError, match=r"Milan or Genoa.*blSPL=3&teeSPL=0&snpSPL=8"):
        Snp().authenticate(virtee()._replace(cert_chain=()), AT)


@needs_shared
def test_the_report_of_a_guest_that_may_be_debugged() -> None:
    """Its signature holds, as the steps say, and it is refused for its policy."""
    refused = refusal(go_sev_guest(), now=AT)
    assert isinstance(refused, PolicyError)
    assert refused.reason == "debug"
    assert any("signature holds" in step for step in refused.steps)


@needs_shared
@pytest.mark.parametrize("platform", [dstack, virtee, go_sev_guest])
def test_every_byte_of_a_report_counts(platform: Callable[[], SevSnp]) -> None:
    """A changed byte anywhere in the 1184 ends it, and never in an acceptance of another kind."""
    genuine = platform()
    snp = Snp()
    for at in range(1184):
        tampered = genuine._replace(report=changed(genuine.report, at))
        with pytest.raises((FormatError, SignatureError, UnsupportedError)):
            snp.authenticate(tampered, AT)


@needs_shared
@pytest.mark.parametrize("which", [0, 1])
def test_every_byte_of_a_certificate_counts(which: int) -> None:
    """So does one in the ASK or the VCEK."""
    genuine, snp = dstack(), Snp()
    der = genuine.cert_chain[which]
    for at in range(len(der)):
        chain = list(genuine.cert_chain)
        chain[which] = changed(der, at)
        with pytest.raises((SignatureError, CollateralError)):
            snp.authenticate(genuine._replace(cert_chain=tuple(chain)), AT)


@needs_shared
def test_a_chain_at_the_ends_of_its_validity() -> None:
    """The second of either end is inside, the next is not."""
    genuine = dstack()
    first = datetime(2026, 6, 17, 1, 5, 4, tzinfo=timezone.utc)
    last = datetime(2033, 6, 17, 1, 5, 4, tzinfo=timezone.utc)
    for now in (first, last):
        Snp().authenticate(genuine, now)
    for now in (first - timedelta(seconds=1), last + timedelta(seconds=1)):
        refused = refusal(genuine, now=now)
        assert isinstance(refused, CollateralExpiredError)
        assert refused.reason == "cert_expired"
        assert "the VCEK is valid from 2026-06-17 01:05:04" in str(refused)


@needs_shared
def test_an_anchor_stands_alone() -> None:
    """With a root handed in, AMD's own counts no more; AMD's key is genuine whoever hands it in."""
    genuine = dstack()
    assert refusal(genuine, amd.ark(), AT).reason == "untrusted_root"
    assert refusal(genuine, AMD_ROOTS["Genoa"], AT).reason == "untrusted_root"
    assert Snp(AMD_ROOTS["Milan"]).authenticate(genuine, AT).chain[2] == AMD_ROOTS["Milan"]
    assert Snp(AMD_ROOTS["Milan"]).genuine
    assert Snp().genuine
    assert not Snp(amd.ark()).genuine
    assert not Snp(AWS_ROOT).genuine
    assert refusal(genuine, AWS_ROOT, AT).reason == "untrusted_root"


def test_the_stand_in() -> None:
    """Evidence of a made chip leads to a made root, and to no other."""
    found = Snp(amd.ark()).authenticate(amd.evidence(), amd.NOW)
    assert found.status is TcbStatus.UP_TO_DATE
    assert found.report_data == bytes(range(64))
    assert found.chain == (amd.vcek(), amd.ask(), amd.ark())
    # The names are those of AMD's chain, the key is not.
    refused = refusal(amd.evidence())
    assert refused.reason == "untrusted_root"
    assert str(refused).startswith("the ASK is not signed by AMD's root for ")
    assert "evidence of a simulator needs the simulator's root as trust anchor" in str(refused)


def test_a_report_of_a_provider() -> None:
    """A VLEK signs for a provider's chips, under its own authority."""
    raw = amd.report({0x48: VLEK_KEY})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw, (amd.asvk(), amd.vlek())), amd.NOW)
    assert found.chain == (amd.vlek(), amd.asvk(), amd.ark())
    assert "a-provider" in " ".join(found.steps)
    table = amd.table(vlek=amd.vlek(), ask=amd.asvk())
    assert Snp(amd.ark()).authenticate(amd.evidence(raw, (table,)), amd.NOW) == found
    with pytest.raises(CollateralError, match=r"the VLEK certificate .* in the certificate table"):
        Snp(amd.ark()).authenticate(amd.evidence(raw, ()), amd.NOW)
    with pytest.raises(CollateralError, match=r"the ASVK.*/vlek/v1/Milan/cert_chain"):
        Snp(amd.ark()).authenticate(amd.evidence(raw, (amd.vlek(), amd.ask())), amd.NOW)


def test_a_report_of_turin() -> None:
    """Turin has eight bytes of chip id, and its numbers elsewhere."""
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
    with pytest.raises(CollateralError, match=r"Turin/0102030405060708\?fmcSPL=1&blSPL=2"):
        Snp().authenticate(amd.evidence(amd.report(changes), ()), amd.NOW)
    older = amd.report({**changes, 0x188: bytes(3)}, version=2)
    Snp(amd.ark()).authenticate(amd.evidence(older, chain), amd.NOW)
    with pytest.raises(CollateralError, match=r"Turin/0102030405060708\?fmcSPL=1&blSPL=2"):
        Snp().authenticate(amd.evidence(older, ()), amd.NOW)
    assert refusal(amd.evidence(older), amd.ark()).reason == "product_mismatch"


@pytest.mark.parametrize(
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
def test_guests_that_are_refused(changes: Mapping[int, bytes], reason: str) -> None:
    """Each rule has its reason, and the signatures held before it was asked."""
    refused = made_refusal(amd.evidence(amd.report(changes)))
    assert isinstance(refused, PolicyError)
    assert refused.reason == reason
    assert any("the report's signature holds" in step for step in refused.steps)


@pytest.mark.parametrize(
    ("policy", "info"),
    [(0x2_0000, 0b0), (0x83_0000, 0b1001), (0x103_0000, 0b10001), (0x3_0000, 0b0)],
)
def test_platforms_that_have_what_the_guest_asks_for(policy: int, info: int) -> None:
    """SMT off, RAPL off and ciphertext hiding are fine where the platform says so."""
    raw = amd.report({0x08: policy.to_bytes(8, "little"), 0x40: bytes([info])})
    Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)


def test_a_chip_id_that_is_hidden() -> None:
    """A host may hide the chip id; the key is the chip's all the same, and the steps say so."""
    raw = amd.report({0x1A0: bytes(64)})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)
    assert any("hidden" in step for step in found.steps)
    with pytest.raises(CollateralError, match="hides the chip id"):
        Snp(amd.ark()).authenticate(amd.evidence(raw, ()), amd.NOW)


@pytest.mark.parametrize("at", [0x038, 0x1E0, 0x1F0])
def test_a_platform_whose_numbers_differ(at: int) -> None:
    """Current, committed and launch TCB must each be the reported one."""
    raw = amd.report({at: bytes((4, 0, 0, 0, 0, 0, 22, 213))})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw), amd.NOW)
    assert found.status is TcbStatus.OUT_OF_DATE


def test_the_configuration_document() -> None:
    """HOST_DATA is the hash of the document, if there is one."""
    document = '{"version":3}'
    raw = amd.report({0xC0: host_data(document)})
    found = Snp(amd.ark()).authenticate(amd.evidence(raw, mr_config=document), amd.NOW)
    assert "HOST_DATA is the hash of the configuration document" in found.steps
    refused = made_refusal(amd.evidence(raw, mr_config=document + " "))
    assert isinstance(refused, ReplayError)
    assert refused.reason == "host_data_mismatch"


def test_a_naive_time_is_refused() -> None:
    """A time without its zone could be hours off."""
    with pytest.raises(UsageError, match="aware"):
        Snp(amd.ark()).authenticate(amd.evidence(), datetime.fromisoformat("2026-08-01"))


def test_it_pickles() -> None:
    """A verifier goes to another process."""
    snp = pickle.loads(pickle.dumps(Snp(amd.ark(), certificates=[amd.vcek(), amd.ask()])))
    found = snp.authenticate(amd.evidence(chain=()), amd.NOW)
    assert found == Snp(amd.ark()).authenticate(amd.evidence(), amd.NOW)


@settings(deadline=None)  # machines are busy
@given(
    st.binary(max_size=64) | st.binary(min_size=1184, max_size=1184),
    st.lists(st.binary(max_size=200), max_size=3).map(tuple),
    st.text(max_size=20),
)
def test_any_bytes(raw: bytes, chain: tuple[bytes, ...], mr_config: str) -> None:
    """Whatever comes, only our errors come out."""
    with pytest.raises(AttestKitError):
        Snp().authenticate(SevSnp(raw, chain, mr_config), amd.NOW)
    if HAVE_SHARED:
        with pytest.raises(AttestKitError):
            Snp().authenticate(dstack()._replace(cert_chain=chain), AT)
