"""Simulated AMD certificates have the form of AMD's own, and are accepted by X.509 libraries."""

from datetime import datetime, timezone

import pytest
from cryptography import x509

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.simulated.amd_certificates import AmdAuthority, issue_amd_crl
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.scenarios.config import SnpConfig, SnpProduct, SnpSigningKey
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

NOW = datetime(2026, 11, 1, tzinfo=timezone.utc)
DISTRIBUTION_POINTS = "2.5.29.31"
OWN = "1.3.6.1.4.1.3704.1."


def make_chip(config: SnpConfig) -> SimulatedChip:
    """Return a chip of a fixed seed."""
    return SimulatedChip(lambda label, length: derive(bytes(32), label, length), config)


def form_of(certificate: PathCertificate) -> tuple[object, ...]:
    """Return all that certificates of one kind and product have in common."""
    return (
        certificate.algorithm,
        certificate.issuer,
        certificate.subject,
        list(certificate.extensions),  # in order
        certificate.critical,
        (certificate.authority, certificate.path_length, certificate.key_usage),
        certificate.extensions.get(DISTRIBUTION_POINTS),
        certificate.extensions.get(f"{OWN}1"),
    )


@needs_shared
@pytest.mark.parametrize("product", ["Milan", "Genoa"])
@pytest.mark.parametrize("key", ["VCEK", "VLEK"])
def test_amd_authorities_have_the_form_of_amds(product: SnpProduct, key: SnpSigningKey) -> None:
    """Algorithms, names, and extensions with their order and values."""
    chip = make_chip(SnpConfig(product=product, signing_key=key))
    suffix = "_vlek" if key == "VLEK" else ""
    theirs = split_pem(data(f"snp/go-sev-guest/ask_ark_{product.lower()}{suffix}.pem").decode())
    ours = (chip.ask_der, chip.ark_der)
    for one, other in zip(ours, theirs, strict=True):
        assert form_of(read_path_certificate(one)) == form_of(read_path_certificate(other))


@needs_shared
@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_vcek_has_the_form_of_amds(product: SnpProduct) -> None:
    """Extensions have AMD's order; the reserved SPLs are there, except SPL 4 on Turin."""
    theirs = read_path_certificate(data(f"snp/virtee-sev/vcek_{product.lower()}.der"))
    ours = read_path_certificate(make_chip(SnpConfig(product=product)).leaf_der)
    if product == "Turin":  # Turin's parameters omit the default trailer field
        ours = ours._replace(algorithm=theirs.algorithm)
    assert form_of(ours) == form_of(theirs)
    assert len(ours.extensions[f"{OWN}4"]) == len(theirs.extensions[f"{OWN}4"])


@every_case("product", ["Milan", "Genoa", "Turin"])
@every_case("key", ["VCEK", "VLEK"])
def test_amd_chain_is_valid(product: SnpProduct, key: SnpSigningKey) -> None:
    """Each certificate is signed by its issuer, the root by itself."""
    chip = make_chip(SnpConfig(product=product, signing_key=key))
    chain = (chip.leaf_der, chip.ask_der, chip.ark_der)
    path = [read_path_certificate(der) for der in chain]
    check_path([*zip(("leaf", "authority", "root"), path, strict=True)], NOW)
    authority, root = map(x509.load_der_x509_certificate, chain[1:])
    authority.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert chip.leaf_der[4:].startswith(path[0].signed[:4])
    assert path[0].signed[4:12] == bytes.fromhex("a003020102020100")  # version 3, serial number 0


def test_amd_crl_lists_revoked_serials() -> None:
    """It is signed by the ARK, and lists what is revoked."""
    ark = AmdAuthority("ARK-Genoa", RsaKey(bytes(32)))
    for revoked in ((), (0x20001,)):
        window = Window(NOW, NOW.replace(month=12))
        crl = x509.load_der_x509_crl(issue_amd_crl(ark, window=window, number=7, revoked=revoked))
        assert [entry.serial_number for entry in crl] == list(revoked)
        assert (crl.last_update_utc, crl.next_update_utc) == window
        assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    chip = make_chip(SnpConfig())
    listed = x509.load_der_x509_crl(chip.crl(NOW.timestamp()))
    root = x509.load_der_x509_certificate(chip.ark_der)
    assert listed.issuer == root.subject
    assert listed.is_signature_valid(root.public_key())  # type: ignore[arg-type] # RSA
