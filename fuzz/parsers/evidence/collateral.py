"""Targets: what Intel's service and a PCCS answer, and files of it."""

import json
from dataclasses import replace
from typing import Final
from urllib.parse import quote as percent_encode

from attestkit.collateral import Collateral
from attestkit.collateral.intel_collateral import part_window, split_signed
from attestkit.collateral.pccs_client import Platform, Service, base_url
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, FormatError, UsageError, VerificationError
from attestkit.verifier.dcap.certificate_chains import CertificateChains
from attestkit.verifier.dcap.tcb_info import QeIdentity, TcbInfo, read_qe_identity, read_tcb_info
from attestkit.verifier.dcap.verified_collateral import CollateralVerifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from fuzz.parsers.evidence.reports import PKI

NOW: Final = 1_790_000_000
GOOD: Final = PKI.collateral(NOW)
_VERIFIER: Final = CollateralVerifier(CertificateChains(PKI.root_der))


def _small() -> Collateral:
    """Return collateral of the right shape whose parts are small."""
    return replace(
        GOOD,
        pck_crl_issuer_chain="P",
        root_ca_crl=b"0",
        pck_crl=b"0",
        tcb_info_issuer_chain="P",
        tcb_info='{"issueDate":"2026-01-01T00:00:00Z","nextUpdate":"2027-01-01T00:00:00Z"}',
        qe_identity_issuer_chain="P",
        qe_identity="{}",
    )


def _collateral(_raw: bytes, found: Collateral) -> None:
    check_same("written and read again", Collateral.from_json(found.to_json()), found)
    tried(lambda: found.valid_until, None, CollateralError)
    tried(lambda: _VERIFIER.verify(found), None, CollateralError, VerificationError)
    repr(found)


def collateral_samples() -> list[bytes]:
    """Return files, small ones and the simulator's."""
    small = _small()
    with_chain = replace(small, pck_certificate_chain="P")
    return [one.to_json().encode() for one in (small, with_chain, GOOD)]


def _bundle(_raw: bytes, found: EvidenceBundle) -> None:
    check_same("written and read again", EvidenceBundle.from_json(found.to_json()), found)
    repr(found)


def bundle_samples() -> list[bytes]:
    """Return bundles with and without collateral."""
    least = {
        "version": 1,
        "evidence": "AAE=",
        "collateral": None,
        "at": "2026-01-01T00:00:00+02:00",
        "report_data": "00ff",
    }
    more = {**least, "report_data": None, "collateral": json.loads(_small().to_json())}
    lists = {**least, "amd_crls": ["AAE="], "ak_certificates": ["AAE=", "AA=="]}
    return [json.dumps(one).encode() for one in (least, more, lists)]


def _split(raw: bytes) -> tuple[str, bytes]:
    return split_signed(raw, "tcbInfo")


def _pieces(raw: bytes, found: tuple[str, bytes]) -> None:
    text, signature = found
    check("the body stands in the answer", text.encode() in raw)
    check("it is an object", isinstance(json.loads(text), dict))
    check_same("64 bytes", len(signature), 64)


def signed_samples() -> list[bytes]:
    """Return bodies with their signatures, in either order."""
    signature = "ab" * 64
    return [
        f'{{"tcbInfo":{{"a":[1]}},"signature":"{signature}"}}'.encode(),
        f' {{ "signature" : "{signature}" , "tcbInfo" : {{}} }} \n'.encode(),
        f'{{"tcbInfo":{GOOD.tcb_info},"signature":"{signature}"}}'.encode(),
    ]


def _tcb(raw: bytes) -> TcbInfo | QeIdentity:
    """Read either of the two bodies that Intel signs, as the first byte says."""
    text = raw[1:].decode("utf-8", "surrogateescape")
    return read_qe_identity(text) if raw[:1] == b"q" else read_tcb_info(text)


def tcb_samples() -> list[bytes]:
    """Return bodies of the simulator, short: of many levels two."""
    info = json.loads(GOOD.tcb_info)
    info["tcbLevels"] = info["tcbLevels"][:2]
    qe = json.loads(GOOD.qe_identity)
    return [
        b"t" + json.dumps(info, separators=(",", ":")).encode(),
        b"q" + json.dumps(qe, separators=(",", ":")).encode(),
    ]


def _window(raw: bytes) -> object:
    """Read when a part is valid: a CRL, a chain or a body, as the first byte says."""
    if raw[:1] == b"c":
        return part_window("pck_crl", raw[1:])
    name = "tcb_info_issuer_chain" if raw[:1] == b"p" else "tcb_info"
    return part_window(name, raw[1:].decode("utf-8", "surrogateescape"))


def window_samples() -> list[bytes]:
    """Return one part of each kind."""
    chain = GOOD.tcb_info_issuer_chain
    dates = _small().tcb_info.encode()
    return [b"c" + GOOD.pck_crl, b"p" + chain.encode(), b"b" + dates, b"b" + dates[:30]]


_CHAIN: Final = percent_encode(GOOD.tcb_info_issuer_chain)
_NAMES: Final = ("TCB-Info", "SGX-Enclave-Identity", "SGX-PCK-CRL")
_HEADERS: Final = {f"{name}-Issuer-Chain": _CHAIN for name in _NAMES}


def _pccs(raw: bytes) -> Collateral:
    """Let a service give good answers but for one: the first byte says which, the next its part.

    An answer is `HEADER`, a zero byte and the body; the header is the chain that comes with it.
    """
    number, status, rest = raw[:1], raw[1:2], raw[2:]
    header, _, body = rest.partition(b"\0")
    good = [
        f'{{"tcbInfo":{GOOD.tcb_info},"signature":"{GOOD.tcb_info_signature.hex()}"}}'.encode(),
        f'{{"enclaveIdentity":{GOOD.qe_identity},"signature":"{"00" * 64}"}}'.encode(),
        GOOD.pck_crl,
        GOOD.root_ca_crl.hex().encode(),
    ]
    answers = [Response(200, _HEADERS, one) for one in good]
    at = number[0] % len(answers) if number else 0
    headers = dict(_HEADERS)
    if header:
        headers = dict.fromkeys(_HEADERS, header.decode("latin-1"))
    code = 200 if not status or status[0] >= 32 else 300 + 10 * status[0]
    answers[at] = Response(code, headers, body or good[at])
    given = iter(answers)
    return Service("https://pccs", lambda _url: next(given)).collateral("tdx", _PLATFORM)


_PLATFORM: Final = Platform("00806F050000", "platform")


def pccs_samples() -> list[bytes]:
    """Return answers to each of the four requests, among them what is none."""
    chain = _CHAIN.encode()
    return [
        b"\0 " + b"\0" + signed_samples()[0],
        b"\0 " + chain + b"\0" + signed_samples()[0],
        b"\1 \0" + signed_samples()[1].replace(b"tcbInfo", b"enclaveIdentity"),
        b"\2 \0" + GOOD.pck_crl,
        b"\3 \0" + GOOD.root_ca_crl.hex().encode(),
        b"\0\0\0redirect",
    ]


def _base(raw: bytes) -> str:
    return base_url(raw.decode("utf-8", "surrogateescape"))


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    collateral = obeys(Collateral.from_json, CollateralError, accepted=_collateral)
    bundle = obeys(EvidenceBundle.from_json, FormatError, accepted=_bundle)
    signed = obeys(_split, FormatError, accepted=_pieces)
    url = obeys(
        _base, UsageError, accepted=lambda _raw, found: check_same("it", base_url(found), found)
    )
    return [
        ParserTarget("collateral", collateral, short(collateral_samples), "collateral.dict"),
        ParserTarget("bundle", bundle, short(bundle_samples), "collateral.dict"),
        ParserTarget("signed_body", signed, short(signed_samples), "collateral.dict"),
        ParserTarget(
            "tcb_info",
            obeys(_tcb, CollateralError, VerificationError),
            short(tcb_samples),
            "collateral.dict",
        ),
        ParserTarget(
            "part_window",
            obeys(_window, CollateralError),
            short(window_samples, 2048),
            "collateral.dict",
            2048,
        ),
        ParserTarget("pccs", obeys(_pccs, CollateralError), short(pccs_samples), "collateral.dict"),
        ParserTarget(
            "pccs_url",
            url,
            lambda: [b"https://pccs:8081/sgx/certification/v4/", b"http://[::1]:1/a"],
            "http.dict",
            256,
        ),
    ]
