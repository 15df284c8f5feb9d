"""A simulated AMD PKI: a root, intermediate CAs, chips and providers, and their reports.

Keys are generated once per run; RSA keys have only 2048 bits.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.launch.os_image import expected_snp_measurement
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.backends.simulator.images.os_image import snp_vm_config

NOW: Final = datetime(2026, 8, 1, 12, 0, 0, tzinfo=timezone.utc)
YEAR: Final = timedelta(days=365)
CHIP: Final = bytes(range(1, 65))
TURIN_CHIP: Final = bytes(range(1, 9))
SPLS: Final = {"3.1": 4, "3.2": 0, "3.3": 23, "3.8": 213}  # boot loader, TEE, SNP, microcode
TURIN_SPLS: Final = {"3.9": 1, "3.1": 2, "3.2": 3, "3.3": 4, "3.8": 213}  # FMC first
TCB: Final = bytes((4, 0, 0, 0, 0, 0, 23, 213))
TURIN_TCB: Final = bytes((1, 2, 3, 4, 0, 0, 0, 213))
TCB_VERSIONS: Final = (0x038, 0x180, 0x1E0, 0x1F0)  # offsets: current, reported, committed, launch
REPORT_DATA: Final = bytes(range(64))
MR_CONFIG: Final = json.dumps(
    {
        "version": 3,
        "app_id": "0a" * 20,
        "compose_hash": "0c" * 32,
        "instance_id": "1d" * 20,
        "key_provider": "none",
    }
)
"""Configuration document of `launched_evidence`."""

_PREFIX: Final = "1.3.6.1.4.1.3704.1."


@cache
def rsa_key(name: str | tuple[str, ...]) -> rsa.RSAPrivateKey:
    """Return the key of an authority."""
    del name  # distinguishes keys in the cache
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def p384_key(name: str = "chip") -> ec.EllipticCurvePrivateKey:
    """Return the key of a chip or provider."""
    del name  # distinguishes keys in the cache
    return ec.generate_private_key(ec.SECP384R1())


def name_of(common_names: str | tuple[str, ...]) -> x509.Name:
    """Return a shortened form of AMD's distinguished names; AMD's have one common name."""
    names = (common_names,) if isinstance(common_names, str) else common_names
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            *(x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names),
        ]
    )


def sign(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey, salt: int = 48) -> bytes:
    """Return a certificate in DER, signed as AMD signs."""
    padding = PSS(MGF1(SHA384()), salt)
    return builder.sign(key, SHA384(), rsa_padding=padding).public_bytes(Encoding.DER)


def authority(
    name: str | tuple[str, ...],
    issuer: str,
    *,
    path_length: int | None = None,
    validity: timedelta = 10 * YEAR,
) -> bytes:
    """Return the certificate of a CA; a root is self-signed."""
    public, end = rsa_key(name).public_key(), NOW + validity
    builder = x509.CertificateBuilder(
        name_of(issuer), name_of(name), public, 7, NOW - YEAR, end
    ).add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return sign(builder, rsa_key(issuer))


@cache
def ark() -> bytes:
    """Return the root."""
    return authority("ARK-Milan", "ARK-Milan")


@cache
def ask(product: str = "Milan") -> bytes:
    """Return the CA certificate for chips of a product."""
    return authority(f"SEV-{product}", "ARK-Milan", path_length=0)


@cache
def asvk() -> bytes:
    """Return the CA certificate for providers."""
    return authority("SEV-VLEK-Milan", "ARK-Milan", path_length=0)


def integer(value: int) -> bytes:
    """Return the DER of an integer of at most two bytes."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes([2, len(content)]) + content


def text(value: str) -> bytes:
    """Return the DER of an IA5String."""
    return bytes([0x16, len(value)]) + value.encode()


def extensions(
    product: str = "Milan-B0", spls: Mapping[str, int] = SPLS, hardware_id: bytes = CHIP
) -> dict[str, bytes]:
    """Return AMD's extensions of a VCEK by the suffix of AMD's OID."""
    found = {"1": integer(0), "2": text(product)}
    found |= {suffix: integer(level) for suffix, level in spls.items()}
    return found | {"4": hardware_id}


def provider_extensions(product: str = "Milan") -> dict[str, bytes]:
    """Return AMD's extensions of a VLEK."""
    found = extensions(product)
    del found["4"]
    return found | {"5": text("a-provider")}


def leaf(
    extensions_of_leaf: Mapping[str, bytes],
    issuer: str | tuple[str, ...] = "SEV-Milan",
    *,
    valid_until: datetime = NOW + YEAR,
    signed_by: str = "",
    salt: int = 48,
    private: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """Return the certificate of a key that signs reports."""
    public = (private or p384_key()).public_key()
    builder = x509.CertificateBuilder(
        name_of(issuer), name_of("SEV-VCEK"), public, 9, NOW - YEAR, valid_until
    )
    for suffix, value in extensions_of_leaf.items():
        oid = x509.ObjectIdentifier(_PREFIX + suffix)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return sign(builder, rsa_key(signed_by or issuer), salt)


def with_serial_zero(certificate: bytes, issuer: str) -> bytes:
    """Return a certificate with the serial number 0, which `cryptography` does not write."""
    found = read_path_certificate(certificate)
    at = found.signed.index(b"\2", 9)  # after the headers and the version
    assert found.signed[at + 1] == 1  # byte of the number
    signed = found.signed[: at + 2] + b"\0" + found.signed[at + 3 :]
    signature = rsa_key(issuer).sign(signed, PSS(MGF1(SHA384()), 48), SHA384())
    return certificate.replace(found.signed, signed).replace(found.signature, signature)


@cache
def vcek() -> bytes:
    """Return the certificate of the chip."""
    return leaf(extensions())


@cache
def vlek() -> bytes:
    """Return the certificate of the provider."""
    return leaf(provider_extensions(), "SEV-VLEK-Milan")


def table(**certificates: bytes) -> bytes:
    """Return the certificate table that the host's kernel supplies."""
    guids = {
        "vcek": "63da758de6644564adc5f4b93be8accd",
        "vlek": "a8074bc2a25a483eaae639c045a0b8a1",
        "ask": "4ab7b379bbac4fe4a02f05aef327c782",
        "ark": "c0b406a4a803495297433fb6014cd0ae",
    }
    entries, content = b"", b""
    start = 24 * (len(certificates) + 1)
    for name, der in certificates.items():
        place = (start + len(content)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        entries += bytes.fromhex(guids[name]) + place
        content += der
    return entries + bytes(24) + content


def report(changes: Mapping[int, bytes] | None = None, *, version: int = 3) -> bytes:
    """Return a signed report of the chip.

    Args:
        changes: replaced bytes, by offset.
        version: of the report; before 3 it has no CPUID.
    """
    raw = bytearray(1184)
    fields = {
        0x000: version.to_bytes(4, "little"),
        0x008: (0x3_0000).to_bytes(
            8, "little"
        ),  # SMT allowed, and the reserved bit that is always 1
        0x034: b"\1",
        0x040: b"\1",  # SMT is on
        0x050: REPORT_DATA,
        0x090: b"\x5a" * 48,
        0x188: bytes((0x19, 0x01, 0x01)) if version >= 3 else b"",
        0x1A0: CHIP,
    }
    fields |= dict.fromkeys(TCB_VERSIONS, TCB)
    for at, value in {**fields, **(changes or {})}.items():
        raw[at : at + len(value)] = value
    r, s = decode_dss_signature(p384_key().sign(bytes(raw[:0x2A0]), ec.ECDSA(SHA384())))
    raw[0x2A0 : 0x2A0 + 48] = r.to_bytes(48, "little")
    raw[0x2E8 : 0x2E8 + 48] = s.to_bytes(48, "little")
    return bytes(raw)


def evidence(
    raw: bytes | None = None, chain: tuple[bytes, ...] | None = None, mr_config: str = ""
) -> SevSnp:
    """Return the evidence of a guest on the chip."""
    return SevSnp(raw or report(), (ask(), vcek()) if chain is None else chain, mr_config)


def launched_evidence(**launch: Any) -> Attestation:
    """Return evidence of a guest of the simulated image with other launch parameters."""
    config = json.loads(snp_vm_config(MR_CONFIG))
    fields = json.loads(config["sev_snp_measurement"]) | launch
    config["sev_snp_measurement"] = json.dumps(fields)
    text = json.dumps(config)
    measurement = expected_snp_measurement(VmConfig.parse(text))
    raw = report({0x90: measurement, 0xC0: host_data(MR_CONFIG)})
    return Attestation(Evidence(evidence(raw, mr_config=MR_CONFIG), Stack(REPORT_DATA, (), text)))
