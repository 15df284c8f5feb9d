"""Evidence of the simulated PKI in which every part can be altered, and is then signed again.

Without an alteration the evidence is what the simulator makes, byte for byte.
"""

import json
import struct
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._crypto.pem import encode_pem
from attestkit.backends.simulator.pki.quoting_enclave import ENCLAVE_REPORT, TdBody
from attestkit.collateral import Collateral
from tests.verifier.dcap.dcap_samples import COLLATERAL, NOW, PKI
from tests.verifier.dcap.differential.certificate_forms import (
    CertificateForm,
    CrlForm,
    SgxForm,
    issue_certificate,
    issue_crl,
    key,
    sign_raw,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DAY: Final = 86400
ISSUE: Final = (NOW // DAY - 1) * DAY
NEXT: Final = ISSUE + 30 * DAY
TDX, SGX = 0x81, 0x00
EXTENDED: Final = 4  # body type: TD 1.5 extended
_EXTENDED_SIZE: Final = 237  # bytes behind a TD 1.5 body
_SECTION: Final = struct.Struct("<HI")
_PLATFORM: Final = PKI.platform()
_CONFIG: Final = PKI.config
_LEAF_KEY, _ATTESTATION_KEY = "platform/0/pck-leaf", "platform/0/attestation"
_CHAINS: Final = {
    "pck": ("leaf", "ca", "root"),
    "pck_crl": ("ca", "root"),
    "tcb_info": ("signer", "root"),
    "qe_identity": ("signer", "root"),
}


class Evidence(NamedTuple):
    """Input of a verification."""

    quote: bytes
    collateral: Collateral
    root: bytes  # DER
    now: int  # Unix seconds


class Report(NamedTuple):
    """Body of an SGX enclave's report; the reserved fields are zero."""

    cpusvn: bytes = _CONFIG.cpusvn
    miscselect: int = _CONFIG.qe_miscselect
    attributes: bytes = _CONFIG.qe_attributes
    mrenclave: bytes = _CONFIG.qe_mrenclave
    mrsigner: bytes = _CONFIG.qe_mrsigner
    isvprodid: int = _CONFIG.qe_isvprodid
    isvsvn: int = _CONFIG.qe_isvsvn
    report_data: bytes = bytes(64)

    def pack(self) -> bytes:
        """Return the encoding, 384 bytes."""
        return ENCLAVE_REPORT.pack(*self)


class Forge:
    """Parts of evidence; alter them, then call `make`."""

    def __init__(self, tee: int = TDX, version: int = 4, ca: str = "platform") -> None:
        """Start with valid evidence.

        Args:
            tee: TEE type, `TDX` or `SGX`.
            version: Version of the quote; a TDX quote of version 5 has a TD 1.5 body.
            ca: The PCK CA: platform or processor.
        """
        self.tee, self.version, self.now = tee, version, NOW
        self.altered: set[str] = set()  # names of what differs from valid evidence
        self.certificates = _certificates(ca)
        number = ISSUE // DAY
        self.crls = {
            "root": CrlForm("root", ISSUE, NEXT, number),
            "pck": CrlForm("ca", ISSUE, NEXT, number),
        }
        self.chains = dict(_CHAINS)
        self.sgx = _sgx_form(ca)
        self.tcb_info: dict[str, Any] = json.loads(COLLATERAL.tcb_info)
        self.qe_identity: dict[str, Any] = json.loads(COLLATERAL.qe_identity)
        if tee == SGX:
            self._become_sgx()
        self.td, self.enclave, self.qe = TdBody(), Report(), Report()
        self.body_type: int | None = None  # version 5; None: the one that fits
        self.qe_auth_data: bytes = _QE_AUTH_DATA
        # Applied to the signed quote.
        self.change_quote: Callable[[bytes], bytes] | None = None

    def _become_sgx(self) -> None:
        self.tcb_info["id"], self.qe_identity["id"] = "SGX", "QE"
        del self.tcb_info["tdxModule"], self.tcb_info["tdxModuleIdentities"]
        for level in self.tcb_info["tcbLevels"]:
            del level["tcb"]["tdxtcbcomponents"]

    def alter(self, which: str, **values: Any) -> None:
        """Replace fields of a certificate or CRL, `crl root` or `crl pck`."""
        kind, _, name = which.rpartition(" ")
        if kind:
            self.crls[name] = replace(self.crls[name], **values)
        else:
            self.certificates[name] = replace(self.certificates[name], **values)

    @property
    def has_current_tcb(self) -> bool:
        """Whether the quote has a TD 1.5 body, with TEE_TCB_SVN2."""
        return self.tee == TDX and self.version == 5

    def make(self) -> Evidence:
        """Sign and return the evidence."""
        return Evidence(self._quote(), self._collateral(), self.certificate("root"), self.now)

    def copy(self) -> "Forge":
        """Return a copy to be altered."""
        return deepcopy(self)

    def certificate(self, which: str) -> bytes:
        """Return the DER of a certificate."""
        form = self.certificates[which]
        return issue_certificate(
            form, self.certificates[form.issuer], self.sgx if which == "leaf" else None
        )

    def _chain(self, which: str) -> str:
        chain = self.chains[which]
        return "".join(encode_pem("CERTIFICATE", self.certificate(name)) for name in chain)

    def _crl(self, which: str) -> bytes:
        form = self.crls[which]
        return issue_crl(form, self.certificates[form.issuer])

    def _collateral(self) -> Collateral:
        info, identity = encode_body(self.tcb_info), encode_body(self.qe_identity)
        signing_key = self.certificates["signer"].key
        return Collateral(
            pck_crl_issuer_chain=self._chain("pck_crl"),
            root_ca_crl=self._crl("root"),
            pck_crl=self._crl("pck"),
            tcb_info_issuer_chain=self._chain("tcb_info"),
            tcb_info=info,
            tcb_info_signature=sign_raw(signing_key, info.encode()),
            qe_identity_issuer_chain=self._chain("qe_identity"),
            qe_identity=identity,
            qe_identity_signature=sign_raw(signing_key, identity.encode()),
        )

    def _quote(self) -> bytes:
        signed = struct.pack(
            "<HHI4s16s20s",
            self.version,
            2,  # ECDSA P-256
            self.tee,
            bytes(4),
            _VENDOR_ID,
            _PLATFORM.qe_id + bytes(4),
        )
        body = self._body()
        if self.version == 5:
            fitting = 3 if self.tee == TDX else 1
            signed += _SECTION.pack(self.body_type or fitting, len(body))
        signed += body
        auth_data = self.qe_auth_data
        point = key(_ATTESTATION_KEY).public_point
        digest = sha256(point + auth_data).digest()
        report = self.qe._replace(report_data=digest + bytes(32)).pack()
        chain = self._chain("pck").encode() + b"\0"
        size = struct.pack("<H", len(auth_data))
        section = _SECTION.pack(5, len(chain))
        signature = sign_raw(self.certificates["leaf"].key, report)
        inner = b"".join((report, signature, size, auth_data, section, chain))
        if self.version > 3:
            inner = _SECTION.pack(6, len(inner)) + inner
        data = sign_raw(_ATTESTATION_KEY, signed) + point + inner
        quote = signed + struct.pack("<I", len(data)) + data
        return quote if self.change_quote is None else self.change_quote(quote)

    def _body(self) -> bytes:
        if self.tee == SGX:
            return self.enclave.pack()
        body = self.td.td15() if self.version == 5 else self.td.td10()
        return body + bytes(_EXTENDED_SIZE) if self.body_type == EXTENDED else body


_QE_AUTH_DATA: Final = bytes(range(32))
_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def encode_body(body: dict[str, Any]) -> str:
    """Return a body in the encoding that Intel signs."""
    return json.dumps(body, separators=(",", ":"))


def date(seconds: int) -> str:
    """Return a date as in the bodies."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> int:
    """Return the Unix time of a date as in the bodies."""
    return int(datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp())


def _certificates(ca: str) -> dict[str, CertificateForm]:
    start, end = int(_CONFIG.not_before.timestamp()), int(_CONFIG.not_after.timestamp())
    root_crl = f"{_CONFIG.crl_base_url}/IntelSGXRootCA.der"
    pck_crl = f"{_CONFIG.crl_base_url}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"

    def form(
        name: str, label: str, issuer: str, path_length: int | None, url: str = root_crl
    ) -> CertificateForm:
        serial = PKI.serial(label)
        return CertificateForm(name, label, serial, issuer, path_length, start, end, url)

    return {
        "root": form("Intel SGX Root CA", "root-ca", "root", 1),
        "ca": form(f"Intel SGX PCK {ca.title()} CA", f"pck-{ca}-ca", "root", 0),
        "signer": form("Intel SGX TCB Signing", "tcb-signing", "root", None),
        "leaf": form("Intel SGX PCK Certificate", _LEAF_KEY, "ca", None, pck_crl),
    }


def _sgx_form(ca: str) -> SgxForm:
    return SgxForm(
        ppid=_PLATFORM.ppid,
        components=tuple(_CONFIG.cpusvn),
        pcesvn=_CONFIG.pcesvn,
        cpusvn=_CONFIG.cpusvn,
        pceid=_CONFIG.pceid,
        fmspc=_CONFIG.fmspc,
        sgx_type=_CONFIG.sgx_type if ca == "platform" else 0,
        instance_id=_PLATFORM.instance_id if ca == "platform" else None,
        flags=(False, False, False) if ca == "platform" else None,
    )
