"""Facts of vTPM samples in the form of `data/vtpm/expected.json`, from what attestkit reads."""

import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography import x509

from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import P384PublicKey
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.amd_extension import AmdExtension, read_amd_extension
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit.attestation.azure import HclReport, RuntimeKey
from attestkit.attestation.wire.evidence_parts import PcrValue, td_body
from attestkit.errors import SignatureError, VerificationError
from attestkit.event_log import TpmEventLog
from attestkit.quote import Quote, TdQuoteBody
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport
from attestkit.tpm import TpmsAttest, TpmtPublic
from attestkit.tpm.algorithms import ALG_ECC, ALG_RSA, CURVE_IDS, HASH_IDS, SIGNATURE_IDS, hash_size
from tests.vectors import data

Facts = dict[str, Any]
ENDORSEMENT: Final = 0x4000000B
_CLAIMS: Final = {"vm_unique_id": "vmUniqueId"}  # others have hyphens for underscores


def holds(check: Callable[[], object]) -> bool:
    """Return whether a check passes; errors other than refusals are raised."""
    try:
        check()
    except (SignatureError, VerificationError):
        return False
    return True


def attest_facts(message: bytes) -> Facts:
    """Return the fields of a quote's TPMS_ATTEST, which encodes again."""
    found = TpmsAttest.parse(message)
    assert found.encode() == message
    return {
        "magic": message[:4].hex(),
        "type": message[4:6].hex(),
        "qualified_signer": found.qualified_signer.hex(),
        "extra_data": found.extra_data.hex(),
        "clock": found.clock_ms,
        "reset_count": found.reset_count,
        "restart_count": found.restart_count,
        "safe": int(found.safe),
        "firmware_version": f"{found.firmware_version:016x}",
        "pcr_select": [
            {"alg": f"{HASH_IDS[one.bank]:04x}", "size": one.bitmap_size, "pcrs": list(one.pcrs)}
            for one in found.selections
        ],
        "pcr_digest": found.pcr_digest.hex(),
    }


def pcr_facts(values: Sequence[PcrValue]) -> dict[str, str]:
    """Return values of PCRs by number."""
    return {str(one.number): one.value.hex() for one in values}


def _key_facts(name: str, key: RuntimeKey | None) -> tuple[list[str], list[list[str]]]:
    return ([], []) if key is None else ([name], [list(key.operations)])


def _claim(text: str) -> bool | int | str:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if text.isdecimal() else text


def hcl_facts(raw: bytes) -> Facts:
    """Return an HCL report's header as it is encoded again, and its runtime data."""
    found = HclReport.parse(raw)
    encoded = found.encode(len(raw))
    assert encoded == raw
    _, version, size, request_type, status = struct.unpack_from("<4sIIII", encoded)
    data_size, data_version, kind, hash_type, count = struct.unpack_from("<IIIII", encoded, 1216)
    content, key = found.content, found.content.attestation_key
    names, operations = _key_facts("HCLAkPub", key)
    more = _key_facts("HCLEkPub", content.endorsement_key)
    members = ["keys", "vm-configuration", *(["user-data"] if content.user_data else [])]
    return {
        "file_size": len(raw),
        "signature": encoded[:4].decode(),
        "version": version,
        "report_size": size,
        "request_type": request_type,
        "status": status,
        "data_size": data_size,
        "data_version": data_version,
        "report_type": kind,
        "hash_type": hash_type,
        "variable_data_size": count,
        "padding_after": len(raw) - size,
        "padding_is_zero": not any(encoded[size:]),
        "variable_data_sha256": sha256(found.runtime_data).hex(),
        "key_ids": names + more[0],
        "key_ops": operations + more[1],
        "top_keys": members,
        "vm_configuration": {
            _CLAIMS.get(name, name.replace("_", "-")): _claim(value)
            for name, value in content.configuration
        },
        "user_data": None if content.user_data is None else content.user_data.hex(),
        "ak_n_sha256": sha256(key.modulus).hex(),
        "ak_e": key.exponent,
        "ak_bits": int.from_bytes(key.modulus, "big").bit_length(),
    }


def snp_facts(raw: bytes) -> Facts:
    """Return the fields of an SEV-SNP report."""
    found = SnpReport.parse(raw)
    names = ("report_data", "measurement", "host_data", "id_key_digest", "author_key_digest")
    tcbs = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
    cpuid = bytes((found.cpuid_family, found.cpuid_model, found.cpuid_stepping))
    return {
        "version": found.version,
        "guest_svn": found.guest_svn,
        "policy": f"{found.policy:016x}",
        "vmpl": found.vmpl,
        "signature_algo": found.signature_algorithm,
        "platform_info": f"{found.platform_info:x}",
        "key_info": f"{found.key_info:x}",
        "cpuid": cpuid.hex(),
        "chip_id": found.chip_id.hex(),
        **{name: getattr(found, name).hex() for name in names},
        **{name: getattr(found, name).hex() for name in tcbs},
    }


def _td_fields(found: TdReport | TdQuoteBody) -> Facts:
    return {
        "tee_tcb_svn": found.tee_tcb_svn.hex(),
        "mrseam": found.mr_seam.hex(),
        "attributes": found.td_attributes.hex(),
        "xfam": found.xfam.hex(),
        "mrtd": found.mrtd.hex(),
        "mrconfigid": found.mr_config_id.hex(),
        "mrowner": found.mr_owner.hex(),
        "mrownerconfig": found.mr_owner_config.hex(),
        "rtmr": [value.hex() for value in found.rtmrs],
        "report_data": found.report_data.hex(),
    }


def td_report_facts(raw: bytes) -> Facts:
    """Return the fields of the TD report in an HCL report; parsing checks its hashes."""
    report = HclReport.parse(raw).hardware_report
    found = TdReport.parse(report)
    return {
        "report_type": report[:4].hex(),
        "cpusvn": found.cpu_svn.hex(),
        "mac": found.mac.hex(),
        **_td_fields(found),
        "tee_info_hash_ok": True,
        "tee_tcb_info_hash_ok": True,
        "bytes_after_are_zero": not any(raw[32 + len(report) : 1216]),
    }


def hcl_evidence_facts(raw: bytes) -> Facts:
    """Return all facts of an HCL report: header, hardware report and their binding."""
    found = HclReport.parse(raw)
    if found.report_type == "snp":
        facts: Facts = {"snp_report": snp_facts(found.hardware_report)}
        report_data = SnpReport.parse(found.hardware_report).report_data
    else:
        facts = {"td_report": td_report_facts(raw)}
        report_data = TdReport.parse(found.hardware_report).report_data
    return {
        "hcl": hcl_facts(raw),
        **facts,
        "binding_ok": found.binds(report_data),
        "report_data_upper_half_zero": not any(report_data[32:]),
    }


def td_quote_facts(raw: bytes, *, valid: bool) -> Facts:
    """Return the fields of a TD quote, and whether its signatures are valid."""
    found = Quote.parse(raw)
    return {
        "size": len(raw),
        "version": found.version,
        "tee_type": f"{found.header.tee_type:08x}",
        "body_type": None,  # quotes of version 4 have none
        **_td_fields(td_body(found)),
        "quote_signature_ok": valid,
        "certification_data_type": int.from_bytes(raw[764:766], "little"),
        "qe_report_binds_key": valid,
        "pck_chain": [subject(der) for der in found.pck_chain],
        "pck_chain_ok": valid,
        "qe_signature_ok": valid,
    }


def _names(der: bytes) -> tuple[str, str]:
    """Return subject and issuer of a certificate as text."""
    with warnings.catch_warnings():
        # AMD's serial numbers are 0, and Google's older names too long: cryptography warns.
        warnings.simplefilter("ignore")
        found = x509.load_der_x509_certificate(der)
        return found.subject.rfc4514_string(), found.issuer.rfc4514_string()


def subject(der: bytes) -> str:
    """Return a certificate's subject as text."""
    return _names(der)[0]


def certificate_facts(der: bytes) -> Facts:
    """Return names and validity of a certificate."""
    found = read_path_certificate(der)
    return {
        "subject": _names(der)[0],
        "issuer": _names(der)[1],
        "not_before": str(found.valid_from),
        "not_after": str(found.valid_until),
    }


def _amd_key(leaf: PathCertificate) -> AmdExtension:
    key = read_amd_extension(leaf.extensions)
    assert key is not None
    return key


def amd_facts(leaf: bytes, report: SnpReport, chain: str) -> Facts:
    """Return the facts of a VCEK or VLEK beside a report, with the authority of a file."""
    certificate, key = read_path_certificate(leaf), _amd_key(read_path_certificate(leaf))
    authority = split_pem(data(chain.removeprefix("data/")).decode())[0]
    root = read_path_certificate(AMD_ROOTS[key.product])
    path = [("leaf", certificate), ("authority", read_path_certificate(authority)), ("root", root)]
    tcb = report.tcb("reported", key.product)
    levels = (key.boot_loader, key.tee, key.snp, key.microcode)
    public = P384PublicKey(certificate.spki)
    return {
        **certificate_facts(leaf),
        "product": key.product,
        "csp_id": key.provider or None,
        "chip_id_matches": key.hardware_id == report.chip_id if key.hardware_id else None,
        "tcb_matches": levels == (tcb.boot_loader, tcb.tee, tcb.snp, tcb.microcode),
        "chain_ok": holds(lambda: check_path(path, certificate.valid_from)),
        "chain": chain,
        "serial": certificate.serial,
        "report_signature_ok": holds(lambda: public.verify(report.signature, report.signed_region)),
    }


def expected_amd(expected: Facts) -> Facts:
    """Return the expected facts that an AMD certificate contains.

    Of the product, the library keeps no stepping.
    """
    others = {"certificates", "for_report", "note"}
    kept = {name: value for name, value in expected.items() if name not in others}
    return kept | {"product": expected["product"].partition("-")[0]}


def public_facts(found: TpmtPublic) -> Facts:
    """Return the fields of a TPMT_PUBLIC."""
    rsa = found.type == "rsa"
    facts = {
        "type": f"{ALG_RSA if rsa else ALG_ECC:04x}",
        "name_alg": f"{HASH_IDS[found.name_alg]:04x}",
        "attributes": f"{found.attributes:08x}",
        "auth_policy": found.policy.hex(),
        "symmetric": {"alg": f"{0x43 if found.symmetric else 0x10:04x}"},
        "scheme": f"{SIGNATURE_IDS[found.scheme]:04x}:{HASH_IDS[found.scheme_hash]:04x}",
        "name": found.name.hex(),
    }
    if rsa:
        key = {"bits": found.bits, "exponent": found.public_exponent, "n": found.modulus.hex()}
        return facts | key
    coordinates = {"x": found.x.hex(), "y": found.y.hex()}
    return facts | {"curve": CURVE_IDS[found.curve], "kdf": "0010", **coordinates}


def log_facts(raw: bytes) -> Facts:
    """Return the facts of a firmware's log."""
    log = TpmEventLog.parse(raw)
    return {"records": len(log.events), "banks": {bank: hash_size(bank) for bank in log.banks}}
