"""Decoding of collateral for DCAP verification, and checks that dcap-qvl 0.7 lacks.

dcap-qvl accepts TCB info and QE identity signed by any certificate under the root, in a chain of
any length; TCB info of any version above 2 and any TCB type; unused levels with missing components;
CRLs with a thisUpdate in the future; and a body at the second of its nextUpdate (simulated-pki.md,
sections 7 and 12). It does not compare the PCEID.
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
from attestkit.verifier.dcap.reasons import DcapReason, moment, refuse
from attestkit.verifier.dcap.tcb_info import QeIdentity, TcbInfo, read_qe_identity, read_tcb_info
from attestkit.verifier.result import ANOTHER_ROOT

_SIGNER: Final = INTEL | {"CN=Intel SGX TCB Signing"}
_TCB_INFO_VERSION: Final = 3
_QE_IDENTITY_VERSION: Final = 2
_TCB_TYPE: Final = 0  # the only defined way to compare levels
_FRESH: Final = "fetch fresh collateral"
_SHOWN: Final = 200  # characters of an untrusted name


class Endorsements(NamedTuple):
    """Decoded parts of a `Collateral`."""

    collateral: Collateral  # with issuer chains of exactly two certificates
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    roots: tuple[bytes, bytes]  # root keys (SPKI, DER) of the two issuer chains
    start: float  # Unix seconds, half-open: validity of CRLs and bodies
    end: float
    until: str  # `end` for people
    pce_id: bytes  # 2 bytes
    # Indices of components that some level requires.
    sgx: tuple[int, ...]
    tdx: tuple[int, ...]

    def windows(self) -> Iterator[tuple[str, DcapReason, DcapReason, Window]]:
        """Yield name, reason before and reason after its validity, and validity of each part."""
        given, info, qe = self.collateral, self.tcb_info, self.qe_identity
        for name, crl in (("root CA", given.root_ca_crl), ("PCK CA", given.pck_crl)):
            yield f"the {name}'s CRL", "crl_expired", "crl_expired", crl_window(crl)
        window = Window(info.issue_date, info.next_update)
        yield "TCB info", "tcb_info_not_yet_valid", "tcb_info_expired", window
        window = Window(qe.issue_date, qe.next_update)
        yield "QE identity", "qe_identity_not_yet_valid", "qe_identity_expired", window


def read_endorsements(collateral: Collateral, read: Reader = read_certificate) -> Endorsements:
    """Decode collateral without verifying signatures; `read` decodes a certificate in DER.

    Raises:
        CollateralError: If a part is malformed.
        SignatureError: If an issuer chain is not Intel's TCB signer and the root (`chain_length`,
            `unexpected_subject`).
        VerificationError: If a body has an unsupported version.
    """
    info_chain = _issuers("TCB info", collateral.tcb_info_issuer_chain, read)
    qe_chain = _issuers("QE identity", collateral.qe_identity_issuer_chain, read)
    info, qe = read_tcb_info(collateral.tcb_info), read_qe_identity(collateral.qe_identity)
    _check_versions(info, qe)
    found = Endorsements(
        # dcap-qvl gets exactly these certificates, independent of its PEM decoder.
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
        windows = [window for _, _, _, window in found.windows()]
    except FormatError as error:
        raise refuse("crl_malformed", f"a CRL of the collateral is malformed; {_FRESH}") from error
    end = min(window.end for window in windows)
    start = max(window.start for window in windows)
    return found._replace(start=start.timestamp(), end=end.timestamp(), until=moment(end))


def find_mismatch(
    endorsed: Endorsements, chain: PckChain, root: Certificate
) -> tuple[DcapReason, str] | None:
    """Return reason and message if collateral, PCK chain and trust anchor do not belong together.

    Two checks that dcap-qvl does not make: each certificate chain must end in `root`
    (`untrusted_root`), and the TCB info must be for the PCE of the PCK certificate
    (`tcb_info_mismatch`).

    Returns:
        Reason and error text of the first failed check; None if both pass.
    """
    key = root.spki_der
    if endorsed.roots != (key, key) or (chain.root is not None and chain.root.spki_der != key):
        message = "a chain of the quote or the collateral names another root than the trust anchor"
        return "untrusted_root", f"{message}; {ANOTHER_ROOT}"
    if endorsed.pce_id != chain.platform.pceid:
        theirs, ours = endorsed.pce_id.hex(), chain.platform.pceid.hex()
        message = f"TCB info is for PCEID {theirs}, the PCK certificate has {ours}; {_FRESH}"
        return "tcb_info_mismatch", f"{message}, for this platform"
    return None


def not_valid(
    endorsed: Endorsements, root: Certificate, now: int, part: str | None = None
) -> AttestKitError:
    """Return the exception for the part that is not valid at `now`, Unix seconds.

    Args:
        endorsed: Collateral.
        root: Trust anchor.
        now: Time of the verification.
        part: Part as named by `windows`; None is the first one that is not valid.
    """
    for name, early, late, window in endorsed.windows():
        if part not in {None, name}:
            continue
        if now < window.start.timestamp():
            message = (
                f"{name} is valid from {moment(window.start)}, not at {_at(now)}; check the clock"
            )
            return refuse(early, message)
        if now >= window.end.timestamp():
            message = f"{name} was valid until {moment(window.end)}, not at {_at(now)}; {_FRESH}"
            return refuse(late, message)
    return refuse(
        "cert_expired",
        f"the trust anchor is valid from {moment(root.valid_from)} to {moment(root.valid_until)}, "
        f"not at {_at(now)}",
    )


def _issuers(name: str, text: str, read: Reader) -> tuple[Certificate, ...]:
    """Return the issuer chain of a body: the TCB signer and the root."""
    try:
        chain = read_chain(text.encode("utf-8", "replace"), read)
        if len(chain) != 2:
            raise refuse(
                "chain_length",
                f"issuer chain of {name}: {len(chain)} certificates, must be the TCB signer and "
                "the root",
            )
        if frozenset(chain[0].subject.split(",")) != _SIGNER:
            raise refuse(
                "unexpected_subject",
                f"issuer chain of {name}: begins with {shown(chain[0].subject, _SHOWN)}, must be "
                "Intel SGX TCB Signing",
            )
    except FormatError as error:
        message = f"issuer chain of {name}: malformed; {_FRESH}"
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
        message = f"QE identity is of version {qe.version}, not {_QE_IDENTITY_VERSION}"
        raise refuse("qe_identity_wrong_type", message)


def _asked(levels: list[list[int]]) -> tuple[int, ...]:
    """Return the indices of components for which a level requires an SVN above 0."""
    return tuple(n for n, svns in enumerate(zip(*levels, strict=False)) if any(svns))


def _at(now: int) -> str:
    return moment(datetime.fromtimestamp(now, timezone.utc))
