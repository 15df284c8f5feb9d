"""The certificate of a report's signer is found, leads to the root, and is for this very report."""

import functools
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from attestkit._crypto.pem import armour, split_pem
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import (
    FormatError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.verifier.platforms import snp_chain
from attestkit.verifier.platforms.snp import Snp
from attestkit.verifier.platforms.snp_chain import read_endorsements
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

VLEK_KEY = (0b00100).to_bytes(4, "little")


def refusal(platform: SevSnp, anchor: bytes | None = None) -> VerificationError:
    """Return with what evidence is refused, the stand-in's root being trusted or another."""
    with pytest.raises(VerificationError) as caught:
        Snp(anchor or amd.ark()).authenticate(platform, amd.NOW)
    assert caught.value.reason
    return caught.value


@pytest.mark.parametrize(
    "chain",
    [
        lambda: (amd.vcek(), amd.ask()),
        lambda: (amd.ark(), amd.ask(), amd.vcek()),
        lambda: tuple(armour("CERTIFICATE", der).encode() for der in (amd.ask(), amd.vcek())),
        lambda: (b"".join(armour("CERTIFICATE", d).encode() for d in (amd.vcek(), amd.ask())),),
        lambda: (amd.table(vcek=amd.vcek(), ask=amd.ask(), ark=amd.ark()),),
    ],
)
def test_certificates_in_their_forms(chain: Callable[[], tuple[bytes, ...]]) -> None:
    """DER and PEM in any order, and the table of a host's kernel; a root among them is ignored."""
    found = Snp(amd.ark()).authenticate(amd.evidence(chain=chain()), amd.NOW)
    assert found.chain == (amd.vcek(), amd.ask(), amd.ark())


def test_a_certificate_of_the_other_kind() -> None:
    """A report that a VLEK signed is none of a VCEK, and the other way round."""
    provider = amd.report({0x48: VLEK_KEY})
    for platform in (
        amd.evidence(provider),
        amd.evidence(amd.report(), (amd.asvk(), amd.vlek())),
    ):
        assert refusal(platform).reason == "signing_key"
    for key in (0b01000, 0b11100):  # nobody's, and none
        with pytest.raises(FormatError) as caught:
            Snp(amd.ark()).authenticate(
                amd.evidence(amd.report({0x48: key.to_bytes(4, "little")})), amd.NOW
            )
        assert caught.value.reason == "signing_key"


@pytest.mark.parametrize(
    ("own", "reason", "text"),
    [
        (amd.extensions(spls={**amd.SPLS, "3.3": 22}), "tcb_mismatch", "snp 22, .* has 23; .*KDS"),
        (amd.extensions(spls={**amd.SPLS, "3.1": 5}), "tcb_mismatch", "boot_loader 5, .* has 4"),
        (amd.extensions(spls={**amd.SPLS, "3.2": 1}), "tcb_mismatch", "tee 1, .* has 0"),
        (amd.extensions(spls={**amd.SPLS, "3.8": 214}), "tcb_mismatch", "microcode 214, .* has"),
        (amd.extensions(spls={**amd.SPLS, "3.9": 0}), "tcb_mismatch", "fmc 0, .* has None"),
        (amd.extensions(hardware_id=bytes(64)), "chip_id_mismatch", "for the chip 0000"),
        (amd.extensions(hardware_id=amd.TURIN_CHIP), "chip_id_mismatch", "for the chip 01020304"),
        (amd.extensions("Genoa"), "product_mismatch", "for 'Genoa', the report is of Milan"),
        (amd.extensions("Rome"), "product_mismatch", "for 'Rome', the report is of Milan"),
    ],
)
def test_a_certificate_for_something_else(own: Mapping[str, bytes], reason: str, text: str) -> None:
    """What the certificate is for is what the report says, and the text has both."""
    refused = refusal(amd.evidence(chain=(amd.ask(), amd.leaf(own))))
    assert isinstance(refused, SignatureError)
    assert refused.reason == reason
    with pytest.raises(SignatureError, match=text.replace("KDS", "kdsintf")):
        raise refused


def test_a_chip_id_has_its_products_size() -> None:
    """Eight bytes name a chip of Turin, and none of Milan whose id happens to begin so."""
    raw = amd.report({0x1A0: amd.TURIN_CHIP + bytes(56)})
    leaf = amd.leaf(amd.extensions(hardware_id=amd.TURIN_CHIP))
    assert refusal(amd.evidence(raw, (amd.ask(), leaf))).reason == "chip_id_mismatch"


def test_a_certificate_under_another_key() -> None:
    """Each link of the chain is checked: leaf, authority, root, dates, padding."""
    other = amd.leaf(amd.extensions(), signed_by="somebody")
    assert refusal(amd.evidence(chain=(amd.ask(), other))).reason == "cert_bad_signature"
    salted = amd.leaf(amd.extensions(), salt=32)
    assert refusal(amd.evidence(chain=(amd.ask(), salted))).reason == "cert_bad_signature"
    late = amd.leaf(amd.extensions(), valid_until=amd.NOW - timedelta(days=1))
    assert refusal(amd.evidence(chain=(amd.ask(), late))).reason == "cert_expired"
    own = amd.leaf(amd.extensions(), private=amd.p384_key("another chip"))
    assert refusal(amd.evidence(chain=(amd.ask(), own))).reason == "report_bad_signature"
    root = amd.authority("ARK-Milan", "ARK-Milan", validity=timedelta(days=-1))
    assert refusal(amd.evidence(), root).reason == "cert_expired"


def test_an_authority_for_other_keys() -> None:
    """Chips, providers and products have an authority each, and the root signs no key of theirs."""
    provider = amd.report({0x48: VLEK_KEY})
    chip = amd.extensions()
    for raw, *chain in (
        (None, amd.asvk(), amd.leaf(chip, "SEV-VLEK-Milan")),
        (None, amd.ask("Genoa"), amd.leaf(chip, "SEV-Genoa")),
        (None, amd.ark(), amd.leaf(chip, "ARK-Milan")),
        (provider, amd.ask(), amd.leaf(amd.provider_extensions())),
        (provider, amd.ark(), amd.leaf(amd.provider_extensions(), "ARK-Milan")),
    ):
        refused = refusal(amd.evidence(raw, tuple(chain)))
        assert isinstance(refused, SignatureError)
        assert refused.reason == "cert_wrong_authority", refused
    with pytest.raises(SignatureError, match=r"VLEK is signed by b'SEV-Milan', .* SEV-VLEK-Milan"):
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
def test_an_authority_with_other_names(names: tuple[str, ...], reason: str) -> None:
    """It has one common name, spelt as AMD spells it; other parts of its name may be anything."""
    authority = amd.authority(names, "ARK-Milan")
    platform = amd.evidence(chain=(authority, amd.leaf(amd.extensions(), names)))
    if reason:
        assert refusal(platform).reason == reason
    else:
        Snp(amd.ark()).authenticate(platform, amd.NOW)


@needs_shared
@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_the_names_of_amds_authorities(product: str) -> None:
    """AMD's own are named as is asked for here."""
    kinds = {"VCEK": f"ask_ark_{product}", "VLEK": f"ask_ark_{product}_vlek"}
    if product == "turin":
        kinds["VCEK"] += "_vcek"
    for kind, file in kinds.items():
        ask, _ = read_endorsements([data(f"snp/go-sev-guest/{file}.pem")])
        for other in kinds:
            asked = functools.partial(
                snp_chain._check_authority, ask.certificate, other, product.title()
            )
            if other == kind:
                asked()
            else:
                with pytest.raises(SignatureError):
                    asked()


def test_the_certificate_that_fits_is_picked() -> None:
    """Of several, the one for this report counts: a host's may be stale, a caller's are many."""
    stale = amd.leaf(amd.extensions(spls={**amd.SPLS, "3.3": 22}))
    elsewhere = amd.leaf(amd.extensions(hardware_id=bytes(64)))
    chain = (amd.ask(), stale)
    found = Snp(amd.ark(), certificates=[elsewhere, amd.vcek()]).authenticate(
        amd.evidence(chain=chain), amd.NOW
    )
    assert found.chain[0] == amd.vcek()
    with pytest.raises(SignatureError) as caught:
        Snp(amd.ark(), certificates=[elsewhere]).authenticate(amd.evidence(chain=chain), amd.NOW)
    assert caught.value.reason == "chip_id_mismatch"


def test_processors_without_a_root() -> None:
    """A processor we do not know, and one whose root we do not have, are named."""
    with pytest.raises(UnsupportedError, match="family 0x17 model 0x01"):
        Snp().authenticate(amd.evidence(amd.report({0x188: bytes((0x17, 1, 1))})), amd.NOW)
    own = amd.extensions("Venice", amd.TURIN_SPLS, amd.TURIN_CHIP)
    changes = dict.fromkeys(amd.TCB_VERSIONS, amd.TURIN_TCB)
    changes |= {0x188: bytes((0x1A, 0x50, 1)), 0x1A0: amd.TURIN_CHIP + bytes(56)}
    chain = (amd.ask("Venice"), amd.leaf(own, "SEV-Venice"))
    platform = amd.evidence(amd.report(changes), chain)
    with pytest.raises(UnsupportedError, match="root for Venice is not built in"):
        Snp().authenticate(platform, amd.NOW)
    Snp(amd.ark()).authenticate(platform, amd.NOW)


def test_certificates_that_are_none() -> None:
    """Evidence with malformed or too many certificates is refused; a caller's are a FormatError."""
    no_chip = {k: v for k, v in amd.extensions().items() if k != "4"}
    longer = armour("CERTIFICATE", amd.vcek() + b"\0").encode()
    for chain in (
        (b"\x30\x03", amd.vcek()),
        (b"neither",),
        (b"-----BEGIN CERTIFICATE-----\n\xff",),
        (amd.ask(), longer),
        (amd.ask(), amd.leaf(no_chip)),
        (amd.ask(), amd.vcek()) * 5,
    ):
        assert refusal(amd.evidence(chain=chain)).reason == "cert_malformed"
    for wrong in (b"neither", b"\x30\x00"):
        with pytest.raises(FormatError):
            Snp(certificates=[wrong])
        with pytest.raises(FormatError):
            Snp(wrong)


def test_base64_with_spare_bits() -> None:
    """PEM has one spelling for a certificate, so that a changed character never means the same."""
    made = (amd.leaf(amd.extensions("Milan-B0" + "x" * more)) for more in range(3))
    der = next(der for der in made if len(der) % 3)
    good = armour("CERTIFICATE", der)
    last = good.index("=")
    bad = good[: last - 1] + chr(ord(good[last - 1]) + 1) + good[last:]
    assert split_pem(bad) == [der]
    anchor = amd.ark()
    Snp(anchor, certificates=[good.encode()]).authenticate(
        amd.evidence(chain=(amd.ask(),)), amd.NOW
    )
    with pytest.raises(FormatError, match="bits that mean nothing"):
        Snp(anchor, certificates=[bad.encode()])
