"""What a verification yields: the attestation result, and what it is made of.

Names are those of RFC 9334: claims are fields that may be believed now, the result is the
verifier's accepted verdict. A refusal is never one of these values; it is an exception.
"""

from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple, NoReturn

from attestkit.attestation import AppInfo
from attestkit.event_log.event import Event

__all__ = [
    "ANOTHER_ROOT",
    "AttestationResult",
    "Authenticated",
    "Claims",
    "Tcb",
    "TcbStatus",
    "Verdict",
    "accepted",
]


class TcbStatus(str, Enum):
    """How current a platform is, in Intel's words, best first (PCS API, `tcbStatus`)."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"

    def __str__(self) -> str:
        return self.value


class Tcb(NamedTuple):
    """What the maker says of the platform's firmware, beside the status."""

    date: datetime | None = None  # of the platform's level (tcbDate), aware; None: not told
    qe_date: datetime | None = None  # of the quoting enclave's level
    evaluation_data_number: int | None = None  # the smaller of TCB info's and QE identity's
    fmspc: bytes = b""  # 6 bytes on TDX
    components: tuple[tuple[str, int], ...] = ()  # name and SVN of each part of the firmware
    qe_status: TcbStatus | None = None  # of the quoting enclave alone


class Authenticated(NamedTuple):
    """What the maker's keys vouch for, before any rule of the relying party."""

    status: TcbStatus | None  # None where the maker has no such word (AWS Nitro)
    advisory_ids: tuple[str, ...]
    report_data: bytes  # as signed: 64 bytes; a Nitro document's user data has up to 512
    device: bytes  # what names the device: PPID, Nitro's module id; empty on SEV-SNP
    tcb: Tcb
    chain: tuple[bytes, ...]  # DER of the certificates, leaf first, the anchor last
    steps: tuple[str, ...]  # what was checked, for people, a sentence each


class Claims(NamedTuple):
    """Fields of evidence that may be believed. Registers are named as their platform does."""

    platform: str  # dstack-tdx, dstack-amd-sev-snp, dstack-nitro-enclave; sgx for a bare SGX quote
    report_data: bytes  # as signed, 64 bytes; user data of a Nitro document
    registers: tuple[tuple[str, bytes], ...]  # mrtd, rtmr0 ...; measurement, ...; pcr0, ...
    attributes: tuple[tuple[str, bytes], ...]  # td_attributes, xfam, ...; as in the evidence
    events: tuple[Event, ...]  # runtime events, once they replay; none where nothing measures them
    event_registers: tuple[int, ...]  # RTMRs that the log explains
    os_image_hash: bytes  # 32 bytes once the registers are those of the image, else empty
    has_mr_config: bool = (
        False  # the evidence has the document that MR_CONFIG_ID, version 3, hashes
    )

    def register(self, name: str) -> bytes | None:
        """Return a register or attribute by its name; None if this platform has none such."""
        return dict((*self.registers, *self.attributes)).get(name)


class Verdict(NamedTuple):
    """The content of an attestation result; by itself it says nothing."""

    claims: Claims
    tcb_status: TcbStatus | None
    advisory_ids: tuple[str, ...]
    tcb: Tcb
    simulated: bool
    app_info: AppInfo | None
    verified_at: datetime
    certificate_chain: tuple[bytes, ...]
    steps: tuple[str, ...]


_ACCEPTED: Final = object()


class AttestationResult:
    """The verdict on evidence that passed everything. Immutable; made by a Verifier only."""

    __slots__ = ("_verdict",)
    _verdict: Verdict

    def __init__(self, proof: object, verdict: Verdict) -> None:
        if proof is not _ACCEPTED:
            raise TypeError("an AttestationResult comes from a Verifier only")
        object.__setattr__(self, "_verdict", verdict)

    @property
    def claims(self) -> Claims:
        """What may be believed."""
        return self._verdict.claims

    @property
    def tcb_status(self) -> TcbStatus | None:
        """How current the platform is; None where its maker has no such word (AWS Nitro)."""
        return self._verdict.tcb_status

    @property
    def advisory_ids(self) -> tuple[str, ...]:
        """The maker's security advisories that the platform has not dealt with."""
        return self._verdict.advisory_ids

    @property
    def tcb(self) -> Tcb:
        """What the maker says of the firmware beside the status."""
        return self._verdict.tcb

    @property
    def simulated(self) -> bool:
        """Whether the evidence leads to a handed-in root that is not its platform's maker's."""
        return self._verdict.simulated

    @property
    def app_info(self) -> AppInfo | None:
        """Who the app is; fields that nothing vouches for are empty. None where none is named."""
        return self._verdict.app_info

    @property
    def verified_at(self) -> datetime:
        """The time of the verification, aware."""
        return self._verdict.verified_at

    @property
    def certificate_chain(self) -> tuple[bytes, ...]:
        """The certificates that vouch for the evidence: DER, leaf first, the anchor last."""
        return self._verdict.certificate_chain

    @property
    def steps(self) -> tuple[str, ...]:
        """What was checked, and what was left out and why: a sentence each, for people."""
        return self._verdict.steps

    def to_dict(self) -> dict[str, object]:
        """Return plain values ready for JSON; bytes in hex, times in ISO 8601."""
        claims, tcb, info = self.claims, self.tcb, self.app_info
        return {
            "platform": claims.platform,
            "tcb_status": None if self.tcb_status is None else self.tcb_status.value,
            "advisory_ids": list(self.advisory_ids),
            "simulated": self.simulated,
            "verified_at": self.verified_at.isoformat(),
            "report_data": claims.report_data.hex(),
            "registers": {name: value.hex() for name, value in claims.registers},
            "attributes": {name: value.hex() for name, value in claims.attributes},
            "events": [
                {"name": event.name, "payload": event.payload.hex(), "digest": event.digest.hex()}
                for event in claims.events
            ],
            "os_image_hash": claims.os_image_hash.hex() or None,
            "app_info": None if info is None else info.to_dict(),
            "tcb": {
                "date": None if tcb.date is None else tcb.date.isoformat(),
                "qe_date": None if tcb.qe_date is None else tcb.qe_date.isoformat(),
                "qe_status": None if tcb.qe_status is None else tcb.qe_status.value,
                "evaluation_data_number": tcb.evaluation_data_number,
                "fmspc": tcb.fmspc.hex() or None,
                "components": dict(tcb.components),
            },
            "steps": list(self.steps),
        }

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("an AttestationResult does not change")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttestationResult):
            return NotImplemented
        return self._verdict == other._verdict

    def __hash__(self) -> int:
        return hash((self.claims, self.verified_at))

    def __reduce__(self) -> tuple[object, ...]:
        return accepted, (self._verdict,)

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        return f"<AttestationResult {self.claims.platform}, {self.tcb_status}{simulated}>"


def accepted(verdict: Verdict) -> AttestationResult:
    """Return the result for evidence that passed every step; for the pipeline alone."""
    return AttestationResult(_ACCEPTED, verdict)


# What to do about evidence that leads to another root than the trusted one, on any platform.

ANOTHER_ROOT: Final = (
    "evidence of a simulator needs the simulator's root as trust anchor, evidence of hardware "
    "needs none"
)
"""For the end of a sentence that says which root is trusted, and did not sign."""
