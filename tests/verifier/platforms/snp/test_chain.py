"""Tests of SEV-SNP certificate chains: signer, CA, root, and match with the report."""

import functools
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.errors import (
    FormatError,
    SignatureError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.verifier import Verifier
from attestkit.verifier.platforms.snp import chain as snp_chain
from attestkit.verifier.platforms.snp.authenticator import Snp
from attestkit.verifier.platforms.snp.chain import read_endorsements
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

VLEK_KEY = (0b00100).to_bytes(4, "little")


def get_rejection(platform: SevSnp, anchor: bytes | None = None) -> VerificationError:
    """Return the error for rejected evidence, by default under the simulated root."""
    with pytest.raises(VerificationError) as caught:
        Snp(anchor or amd.ark()).authenticate(platform, amd.NOW)
    assert caught.value.reason
    return caught.value


@every_case(
    "chain",
    [
        lambda: (amd.vcek(), amd.ask()),
        lambda: (amd.ark(), amd.ask(), amd.vcek()),
        lambda: tuple(encode_pem("CERTIFICATE", der).encode() for der in (amd.ask(), amd.vcek())),
        lambda: (b"".join(encode_pem("CERTIFICATE", d).encode() for d in (amd.vcek(), amd.ask())),),
        lambda: (amd.table(vcek=amd.vcek(), ask=amd.ask(), ark=amd.ark()),),
    ],
)
def test_snp_chain_accepts_der_pem_and_table(chain: Callable[[], tuple[bytes, ...]]) -> None:
    """DER, PEM and the kernel's table are accepted in any order; a root is ignored."""
    found = Snp(amd.ark()).authenticate(amd.evidence(chain=chain()), amd.NOW)
    assert found.chain == (amd.vcek(), amd.ask(), amd.ark())


def test_snp_chain_accepts_serial_number_zero() -> None:
    """Serial numbers are not checked: AMD's are 0, which `cryptography` warns of and will reject.

    Warnings are errors in this test suite.
    """
    root = amd.with_serial_zero(amd.ark(), "ARK-Milan")
    chain = (
        amd.with_serial_zero(amd.vcek(), "SEV-Milan"),
        amd.with_serial_zero(amd.ask(), "ARK-Milan"),
    )
    result = Verifier(trust_anchor=root, snp_certificates=chain).verify(
        Attestation(Evidence(amd.evidence(chain=()), Stack(bytes(range(64)), (), ""))),
        report_data=bytes(range(64)),
        now=amd.NOW,
    )
    assert result.certificate_chain == (*chain, root)


def test_snp_chain_signing_key_must_match_certificate() -> None:
    """A VLEK-signed report needs a VLEK certificate, a VCEK-signed one a VCEK certificate."""
    provider = amd.report({0x48: VLEK_KEY})
    for platform in (
        amd.evidence(provider),
        amd.evidence(amd.report(), (amd.asvk(), amd.vlek())),
    ):
        assert get_rejection(platform).reason == "signing_key"
    for key in (0b01000, 0b11100):  # reserved values
        with raises(FormatError, "wrong_value"):
            Snp(amd.ark()).authenticate(
                amd.evidence(amd.report({0x48: key.to_bytes(4, "little")})), amd.NOW
            )


@every_case(
    ("own", "reason", "values"),
    [
        (amd.extensions(spls={**amd.SPLS, "3.3": 22}), "tcb_mismatch", "must be 23,|not 22;|kds"),
        (amd.extensions(spls={**amd.SPLS, "3.1": 5}), "tcb_mismatch", "must be 4,|not 5;"),
        (amd.extensions(spls={**amd.SPLS, "3.8": 214}), "tcb_mismatch", "microcode|not 214;"),
        (amd.extensions(spls={**amd.SPLS, "3.2": 1}), "tcb_mismatch", "must be 0,|not 1;"),
        (amd.extensions(spls={**amd.SPLS, "3.9": 0}), "tcb_mismatch", "must be None,|not 0;"),
        (amd.extensions(hardware_id=bytes(64)), "chip_id_mismatch", "not 0000"),
        (amd.extensions(hardware_id=amd.TURIN_CHIP), "chip_id_mismatch", "chip 01020304"),
        (amd.extensions("Genoa"), "product_mismatch", "'Genoa'|Milan"),
        (amd.extensions("Rome"), "product_mismatch", "'Rome'|Milan"),
    ],
)
def test_snp_chain_certificate_must_match_report(
    own: Mapping[str, bytes], reason: str, values: str
) -> None:
    """TCB, chip id and product of certificate and report must match."""
    error = get_rejection(amd.evidence(chain=(amd.ask(), amd.leaf(own))))
    assert isinstance(error, SignatureError)
    assert error.reason == reason
    for value in values.split("|"):
        assert value in str(error)


def test_snp_chain_chip_id_has_size_of_product() -> None:
    """An 8-byte chip id is valid for Turin only, even if a longer id starts with it."""
    raw = amd.report({0x1A0: amd.TURIN_CHIP + bytes(56)})
    leaf = amd.leaf(amd.extensions(hardware_id=amd.TURIN_CHIP))
    assert get_rejection(amd.evidence(raw, (amd.ask(), leaf))).reason == "chip_id_mismatch"


def test_snp_chain_reserved_tcb_bytes_are_of_product() -> None:
    """A version 2 report names no product, so its TCB version must be one of the certificate's."""
    raw = amd.report({0x182: b"\1"}, version=2)
    assert get_rejection(amd.evidence(raw)).reason == "product_mismatch"
    with raises(FormatError, "wrong_value"):
        Snp(amd.ark()).authenticate(amd.evidence(amd.report({0x182: b"\1"})), amd.NOW)


def test_snp_chain_every_signature_is_checked() -> None:
    """Signatures, padding and validity of leaf, CA and root are checked."""
    other = amd.leaf(amd.extensions(), signed_by="somebody")
    assert get_rejection(amd.evidence(chain=(amd.ask(), other))).reason == "cert_bad_signature"
    salted = amd.leaf(amd.extensions(), salt=32)
    assert get_rejection(amd.evidence(chain=(amd.ask(), salted))).reason == "cert_bad_signature"
    expired = amd.leaf(amd.extensions(), valid_until=amd.NOW - timedelta(days=1))
    assert get_rejection(amd.evidence(chain=(amd.ask(), expired))).reason == "cert_expired"
    own = amd.leaf(amd.extensions(), private=amd.p384_key("another chip"))
    assert get_rejection(amd.evidence(chain=(amd.ask(), own))).reason == "report_bad_signature"
    root = amd.authority("ARK-Milan", "ARK-Milan", validity=timedelta(days=-1))
    assert get_rejection(amd.evidence(), root).reason == "cert_expired"


def test_snp_chain_ca_must_be_for_key_and_product() -> None:
    """Chips, providers and products have separate CAs, and the root issues no leaf."""
    provider = amd.report({0x48: VLEK_KEY})
    chip = amd.extensions()
    for raw, *chain in (
        (None, amd.asvk(), amd.leaf(chip, "SEV-VLEK-Milan")),
        (None, amd.ask("Genoa"), amd.leaf(chip, "SEV-Genoa")),
        (None, amd.ark(), amd.leaf(chip, "ARK-Milan")),
        (provider, amd.ask(), amd.leaf(amd.provider_extensions())),
        (provider, amd.ark(), amd.leaf(amd.provider_extensions(), "ARK-Milan")),
    ):
        error = get_rejection(amd.evidence(raw, tuple(chain)))
        assert isinstance(error, SignatureError)
        assert error.reason == "cert_wrong_authority", error
    with raises(SignatureError, "cert_wrong_authority", part="SEV-VLEK-Milan, not 'SEV-Milan'"):
        Snp(amd.ark()).authenticate(
            amd.evidence(provider, (amd.ask(), amd.leaf(amd.provider_extensions()))), amd.NOW
        )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "cert_wrong_authority"),
        (("SEV-Milan", "SEV-VLEK-Milan"), "cert_wrong_authority"),
        (("SEV-Milan", "SEV-Milan"), "cert_wrong_authority"),
        (("sev-milan",), "cert_wrong_authority"),
        (("SEV-Milan",), ""),
    ],
)
def test_snp_chain_ca_common_name_must_match(names: tuple[str, ...], reason: str) -> None:
    """A CA has exactly one common name, spelt as AMD spells it; other name parts are ignored."""
    authority = amd.authority(names, "ARK-Milan")
    platform = amd.evidence(chain=(authority, amd.leaf(amd.extensions(), names)))
    if reason:
        assert get_rejection(platform).reason == reason
    else:
        Snp(amd.ark()).authenticate(platform, amd.NOW)


@needs_shared
@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_snp_chain_accepts_names_of_amd_cas(product: str) -> None:
    """The names of AMD's own CAs are accepted for their key type only."""
    kinds = {"VCEK": f"ask_ark_{product}", "VLEK": f"ask_ark_{product}_vlek"}
    if product == "turin":
        kinds["VCEK"] += "_vcek"
    for kind, file in kinds.items():
        ask, _ = read_endorsements([data(f"snp/go-sev-guest/{file}.pem")])
        for other in kinds:
            check = functools.partial(
                snp_chain._check_authority, ask.certificate, other, product.title()
            )
            if other == kind:
                check()
            else:
                with pytest.raises(SignatureError):
                    check()


def test_snp_chain_selects_matching_certificate() -> None:
    """Of several leaf certificates, the one that matches the report is used."""
    stale = amd.leaf(amd.extensions(spls={**amd.SPLS, "3.3": 22}))
    elsewhere = amd.leaf(amd.extensions(hardware_id=bytes(64)))
    chain = (amd.ask(), stale)
    found = Snp(amd.ark(), certificates=[elsewhere, amd.vcek()]).authenticate(
        amd.evidence(chain=chain), amd.NOW
    )
    assert found.chain[0] == amd.vcek()
    with raises(SignatureError, "chip_id_mismatch"):
        Snp(amd.ark(), certificates=[elsewhere]).authenticate(amd.evidence(chain=chain), amd.NOW)


def test_snp_chain_unsupported_processor_is_named() -> None:
    """An unknown processor, and one without a known root, raise UnsupportedError."""
    with raises(UnsupportedError, "feature", part="family 0x17 model 0x01"):
        Snp().authenticate(amd.evidence(amd.report({0x188: bytes((0x17, 1, 1))})), amd.NOW)
    own = amd.extensions("Venice", amd.TURIN_SPLS, amd.TURIN_CHIP)
    changes = dict.fromkeys(amd.TCB_VERSIONS, amd.TURIN_TCB)
    changes |= {0x188: bytes((0x1A, 0x50, 1)), 0x1A0: amd.TURIN_CHIP + bytes(56)}
    chain = (amd.ask("Venice"), amd.leaf(own, "SEV-Venice"))
    platform = amd.evidence(amd.report(changes), chain)
    with raises(UnsupportedError, "root"):
        Snp().authenticate(platform, amd.NOW)
    Snp(amd.ark()).authenticate(platform, amd.NOW)


def test_snp_chain_malformed_certificates_are_rejected() -> None:
    """Invalid certificates in evidence are rejected; the caller's raise UsageError."""
    no_chip = {k: v for k, v in amd.extensions().items() if k != "4"}
    longer = encode_pem("CERTIFICATE", amd.vcek() + b"\0").encode()
    for chain in (
        (b"\x30\x03", amd.vcek()),
        (b"neither",),
        (b"-----BEGIN CERTIFICATE-----\n\xff",),
        (amd.ask(), longer),
        (amd.ask(), amd.leaf(no_chip)),
        (amd.ask(), amd.vcek()) * 5,
    ):
        assert get_rejection(amd.evidence(chain=chain)).reason == "cert_malformed"
    for wrong in (b"neither", b"\x30\x00"):
        with raises(UsageError, "wrong_value", part="snp_certificates"):
            Snp(certificates=[wrong])
        with pytest.raises(FormatError):
            Snp(wrong)


def test_snp_chain_non_canonical_base64_is_rejected() -> None:
    """PEM with non-zero spare bits in base64 is rejected."""
    candidates = (amd.leaf(amd.extensions("Milan-B0" + "x" * more)) for more in range(3))
    der = next(der for der in candidates if len(der) % 3)
    good = encode_pem("CERTIFICATE", der)
    last = good.index("=")
    bad = good[: last - 1] + chr(ord(good[last - 1]) + 1) + good[last:]
    with raises(FormatError, "not_canonical"):
        split_pem(bad)
    anchor = amd.ark()
    Snp(anchor, certificates=[good.encode()]).authenticate(
        amd.evidence(chain=(amd.ask(),)), amd.NOW
    )
    with raises(UsageError, "wrong_value"):
        Snp(anchor, certificates=[bad.encode()])
