"""Collateral as a DCAP verification uses it, and what dcap-qvl 0.7 does not look at in it.

dcap-qvl takes TCB info and QE identity from any certificate under the root, with any number of
others behind it; TCB info of any version above 2 and of any comparison; levels that it does not
come to without all their components; CRLs from the future; and a body in the second in which it
ends (simulated-pki.md, sections 7 and 12). It also never compares the PCEID.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.sgx_pki_writer import Window, crl_window
from attestkit._sanitize import shown
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, FormatError
from attestkit.verifier.dcap.pck_chain import INTEL, PckChain, Reader, read_chain
from attestkit.verifier.dcap.reasons import moment, refuse
from attestkit.verifier.dcap.tcb_info import QeIdentity, TcbInfo, read_qe_identity, read_tcb_info
from attestkit.verifier.result import ANOTHER_ROOT

__all__ = ["Endorsements", "not_valid", "objection", "read_endorsements"]

_SIGNER: Final = INTEL | {"CN=Intel SGX TCB Signing"}
_TCB_INFO_VERSION: Final = 3
_QE_IDENTITY_VERSION: Final = 2
_TCB_TYPE: Final = 0  # how levels are compared; there is no other yet
_FRESH: Final = "fetch fresh collateral"
_SHOWN: Final = 200  # characters of a name that a stranger chose


class Endorsements(NamedTuple):
    """The parts of one collateral that are looked into."""

    collateral: Collateral  # the same with issuer chains that are the two certificates and no more
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    roots: tuple[bytes, bytes]  # the keys (SPKI, DER) that the two issuer chains end in
    start: float  # Unix seconds at which CRLs and bodies are valid; half open
    end: float
    until: str  # the same for people
    pce_id: bytes  # 2 bytes
    # Which components some level asks for; counted from 0.
    sgx: tuple[int, ...]
    tdx: tuple[int, ...]

    def windows(self) -> Iterator[tuple[str, str, Window]]:
        """Return name, reason before the word expired, and validity of what is signed with one."""
        given, info, qe = self.collateral, self.tcb_info, self.qe_identity
        yield "the root CA's CRL", "crl", crl_window(given.root_ca_crl)
        yield "the PCK CA's CRL", "crl", crl_window(given.pck_crl)
        yield "TCB info", "tcb_info", Window(info.issue_date, info.next_update)
        yield "QE identity", "qe_identity", Window(qe.issue_date, qe.next_update)


def read_endorsements(collateral: Collateral, read: Reader = read_certificate) -> Endorsements:
    """Read what has to be looked at beside dcap-qvl; no signature is verified.

    `read` reads a certificate in DER.

    Raises:
        CollateralError: A part is malformed.
        SignatureError: TCB info or QE identity has other issuers than Intel's TCB signer and the
            root (`chain_length`, `unexpected_subject`).
        VerificationError: The body is of another version than is understood.
    """
    info_chain = _issuers("TCB info", collateral.tcb_info_issuer_chain, read)
    qe_chain = _issuers("QE identity", collateral.qe_identity_issuer_chain, read)
    info, qe = read_tcb_info(collateral.tcb_info), read_qe_identity(collateral.qe_identity)
    _check_versions(info, qe)
    found = Endorsements(
        # dcap-qvl is given these certificates and no others, however it reads PEM.
        collateral=replace(
            collateral,
            tcb_info_issuer_chain="".join(one.pem for one in info_chain),
            qe_identity_issuer_chain="".join(one.pem for one in qe_chain),
        ),
        tcb_info=info,
        qe_identity=qe,
        roots=(info_chain[1].spki_der, qe_chain[1].spki_der),
        start=0.0,
        end=0.0,
        until="",
        pce_id=bytes.fromhex(info.pce_id),
        sgx=_asked([[part.svn for part in level.tcb.sgx] for level in info.tcb_levels]),
        tdx=_asked([[part.svn for part in level.tcb.tdx] for level in info.tcb_levels]),
    )
    try:
        windows = [window for _, _, window in found.windows()]
    except FormatError as error:
        raise refuse("crl_malformed", f"a CRL of the collateral is malformed: {_FRESH}") from error
    end = min(window.end for window in windows)
    start = max(window.start for window in windows)
    return found._replace(start=start.timestamp(), end=end.timestamp(), until=moment(end))


def objection(endorsed: Endorsements, chain: PckChain, root: Certificate) -> tuple[str, str] | None:
    """Return reason and message if collateral, PCK chain and trust anchor do not belong together.

    It is what dcap-qvl does not look at, and holds at any time: a chain that names another root
    (`untrusted_root`), TCB info for another PCE (`tcb_info_mismatch`).
    """
    key = root.spki_der
    if endorsed.roots != (key, key) or (chain.root is not None and chain.root.spki_der != key):
        message = "a chain of the quote or the collateral names another root than the trust anchor"
        return "untrusted_root", f"{message}: {ANOTHER_ROOT}"
    if endorsed.pce_id != chain.platform.pceid:
        theirs, ours = endorsed.pce_id.hex(), chain.platform.pceid.hex()
        message = f"TCB info is for PCEID {theirs}, the PCK certificate has {ours}: {_FRESH}"
        return "tcb_info_mismatch", f"{message}, for this platform"
    return None


def not_valid(endorsed: Endorsements, root: Certificate, now: int) -> AttestKitError:
    """Return the error for what is not valid at `now`, Unix seconds, which something is not."""
    for name, reason, window in endorsed.windows():
        if now < window.start.timestamp():
            early = "crl_expired" if reason == "crl" else f"{reason}_not_yet_valid"
            message = f"{name} is valid from {moment(window.start)}, not at {_at(now)}"
            return refuse(early, message)
        if now >= window.end.timestamp():
            message = f"{name} was valid until {moment(window.end)}, not at {_at(now)}: {_FRESH}"
            return refuse(f"{reason}_expired", message)
    return refuse(
        "cert_expired",
        f"the trust anchor is valid from {moment(root.valid_from)} to {moment(root.valid_until)}, "
        f"not at {_at(now)}",
    )


def _issuers(name: str, text: str, read: Reader) -> tuple[Certificate, ...]:
    """Return the two certificates that a body is signed under: the TCB signer and the root."""
    try:
        chain = read_chain(text.encode("utf-8", "replace"), read)
        if len(chain) != 2:
            raise refuse(
                "chain_length",
                f"{name} is signed under a chain of the TCB signer and the root, not of "
                f"{len(chain)} certificates",
            )
        if frozenset(chain[0].subject.split(",")) != _SIGNER:
            raise refuse(
                "unexpected_subject",
                f"{name} is signed by Intel SGX TCB Signing, not by "
                f"{shown(chain[0].subject, _SHOWN)}",
            )
    except FormatError as error:
        message = f"the issuer chain of {name} is malformed: {_FRESH}"
        raise refuse("cert_malformed", message) from error
    return chain


def _check_versions(info: TcbInfo, qe: QeIdentity) -> None:
    if (info.version, info.tcb_type) != (_TCB_INFO_VERSION, _TCB_TYPE):
        raise refuse(
            "tcb_info_wrong_type",
            f"TCB info is of version {info.version} and TCB type {info.tcb_type}, not "
            f"{_TCB_INFO_VERSION} and {_TCB_TYPE}",
        )
    if qe.version != _QE_IDENTITY_VERSION:
        raise refuse(
            "qe_identity_wrong_type",
            f"QE identity is of version {qe.version}, not {_QE_IDENTITY_VERSION}",
        )


def _asked(levels: list[list[int]]) -> tuple[int, ...]:
    """Return the indices at which some level has more than 0."""
    return tuple(n for n, svns in enumerate(zip(*levels, strict=False)) if any(svns))


def _at(now: int) -> str:
    return moment(datetime.fromtimestamp(now, timezone.utc))
