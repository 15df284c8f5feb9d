"""Sample claims that every preset accepts, and changes to them."""

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pytest

from attestkit.attestation import AppInfo
from attestkit.errors import PolicyError
from attestkit.event_log.event import Event
from attestkit.event_log.runtime_events import runtime_event
from attestkit.gpu.rules import GpuRules
from attestkit.verifier import VerificationStep
from attestkit.verifier.claims import Authenticated, Claims, Tcb, TcbStatus, VtpmFacts
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask, KeyProvider
from attestkit.verifier.result import AttestationResult, BoundTo, create_result

NOW: Final = datetime(2026, 9, 21, 14, 13, 20, tzinfo=timezone.utc)
APP_ID: Final = b"\x0a" * 20
COMPOSE_HASH: Final = b"\x0c" * 32
INSTANCE_ID: Final = b"\x1d" * 20
IMAGE_HASH: Final = b"\x05" * 32
PPID: Final = b"\x0d" * 16
KEY_PROVIDER: Final = b'{"name":"kms","id":"3059"}'
SEPT_VE_DISABLE: Final = bytes.fromhex("0000001000000000")
XFAM: Final = bytes.fromhex("e702060000000000")

SNP_TCB: Final = bytes((4, 0, 0, 0, 0, 0, 23, 213))

TDX: Final = "dstack-tdx"
SNP: Final = "dstack-amd-sev-snp"
NITRO: Final = "dstack-nitro-enclave"
SGX: Final = "sgx"
OF_TDX: Final = ("dstack-gcp-tdx", "hcl-tdx", "azure-tdx")
OF_SNP: Final = ("gcp-snp", "hcl-snp", "azure-snp")
TPM_ALONE: Final = ("dstack-aws-nitro-tpm", "tpm", "go-tpm-tools")
NO_STATUS: Final = (NITRO, *TPM_ALONE)
MEASURING: Final = {
    TDX: (0, 1, 2, 3),
    "dstack-gcp-tdx": (0, 1, 2, 3),
    "dstack-aws-nitro-tpm": (),  # PCR 14 of `vtpm()`
}


def register(number: int, size: int = 48) -> bytes:
    """Return a register value that is unique to the number."""
    return bytes([number]) * size


def events(*extra: tuple[str, bytes]) -> tuple[Event, ...]:
    """Return the events of a boot, followed by the application's."""
    boot = (
        ("system-preparing", b""),
        ("app-id", APP_ID),
        ("compose-hash", COMPOSE_HASH),
        ("init-script-hash", register(0x15, 32)),
        ("gpu-policy-hash", register(0x6F, 32)),
        ("instance-id", INSTANCE_ID),
        ("boot-mr-done", b""),
        ("key-provider", KEY_PROVIDER),
        ("storage-fs", b"zfs"),
        ("system-ready", b""),
    )
    return tuple(runtime_event(name, payload) for name, payload in (*boot, *extra))


REGISTERS: Final[dict[str, dict[str, bytes]]] = {
    TDX: {
        "mrtd": register(0x11),
        **{f"rtmr{n}": register(0x20 + n) for n in range(4)},
    },
    SNP: {"measurement": register(0x31), "host_data": register(0x32, 32)},
    NITRO: {f"pcr{n}": register(0x40 + n) for n in (0, 1, 2, 3, 4, 8)},
    SGX: {"mrenclave": register(0x51, 32), "mrsigner": register(0x52, 32)},
}
ATTRIBUTES: Final[dict[str, dict[str, bytes]]] = {
    TDX: {
        "td_attributes": SEPT_VE_DISABLE,
        "xfam": XFAM,
        "seam_attributes": bytes(8),
        "mr_seam": register(0x61),
        "mr_signer_seam": bytes(48),
        "mr_config_id": b"\1" + register(0x62, 47),
        "mr_owner": register(0x63),
        "mr_owner_config": register(0x64),
        "mr_service_td": bytes(48),
    },
    SNP: {
        "policy": (0x30137).to_bytes(8, "little"),  # ABI version 1.55
        "platform_info": bytes([0x25, *bytes(7)]),
        "guest_svn": bytes([2, 0, 0, 0]),
        "vmpl": bytes(4),
        "key_info": bytes(4),
        "id_key_digest": register(0x71),
        "author_key_digest": register(0x72),
        "chip_id": register(0x73, 64),
        "family_id": register(0x74, 16),
        "image_id": register(0x75, 16),
        "report_id": register(0x76, 32),
        "report_id_ma": register(0x77, 32),
        **{f"{which}_tcb": SNP_TCB for which in ("current", "reported", "committed", "launch")},
        "current_version": bytes((1, 55, 29)),
        "committed_version": bytes((1, 55, 29)),
        "sev_features": bytes([1, *bytes(7)]),
        "vcpus": bytes([2, 0, 0, 0]),
        "vcpu_type": b"EPYC-Milan",
    },
    NITRO: {},
    SGX: {"attributes": bytes.fromhex("0500000000000000e700000000000000")},
}


REGISTERS.update(dict.fromkeys(OF_TDX, REGISTERS[TDX]))
ATTRIBUTES.update(dict.fromkeys(OF_TDX, ATTRIBUTES[TDX]))
for _name in OF_TDX[1:]:  # behind a paravisor
    REGISTERS[_name] = REGISTERS[TDX] | {f"rtmr{n}": bytes(48) for n in range(4)}
    ATTRIBUTES[_name] = ATTRIBUTES[TDX] | dict.fromkeys(
        ("mr_config_id", "mr_owner", "mr_owner_config"), bytes(48)
    )
REGISTERS.update(dict.fromkeys(OF_SNP, REGISTERS[SNP]))
ATTRIBUTES.update(dict.fromkeys(OF_SNP, ATTRIBUTES[SNP]))
REGISTERS.update({name: {} for name in TPM_ALONE})
ATTRIBUTES.update({name: {} for name in TPM_ALONE})


def vtpm(**changes: Any) -> VtpmFacts:
    """Return facts of a TPM's quote over two banks, a few of whose PCRs a log explains."""
    found = VtpmFacts(
        attestation_key=b"\x30" + register(0x91, 90),
        key_trust="certificate",
        joins=("ak_to_hardware",),
        pcrs=(
            *(("sha256", index, register(0xA0 + index, 32)) for index in range(24)),
            *(("sha384", index, register(0xC0 + index)) for index in range(24)),
        ),
        replayed=tuple(
            (bank, index) for bank in ("sha256", "sha384") for index in (*range(11), 14)
        ),
        details=(
            *(("secure_boot", "true"), ("console_enabled", "false"), ("tpm_persisted", "true")),
            *(("gce_project", "project"), ("gce_zone", "zone-a"), ("gce_instance", "vm-1")),
            *(("gce_instance_id", "123"), ("vm_unique_id", "7")),
        ),
    )
    return replace(found, **changes)


def claims(platform: str = TDX, **changes: Any) -> Claims:
    """Return the claims of a platform's evidence; a register or attribute of None is omitted."""
    registers, attributes = dict(REGISTERS[platform]), dict(ATTRIBUTES[platform])
    for table in (registers, attributes):
        for name in [name for name in changes if name in table]:
            value = changes.pop(name)
            table.pop(name)
            if value is not None:
                table[name] = value
    measured = platform in MEASURING
    found = Claims(
        platform=platform,
        report_data=bytes(64),
        registers=tuple(registers.items()),
        attributes=tuple(attributes.items()),
        events=events(("model", b"weights")) if measured else (),
        event_registers=MEASURING.get(platform, ()),
        os_image_hash=IMAGE_HASH,
        measurement_version=4 if platform == TDX else None,
        vtpm=vtpm() if platform in {*OF_TDX, *OF_SNP, *TPM_ALONE} else None,
    )
    return replace(found, **changes)


def bare_claims() -> Claims:
    """Return the claims of a quote without event log."""
    return claims(events=(), event_registers=(), os_image_hash=b"")


SNP_SVNS: Final = (("boot_loader", 4), ("tee", 0), ("snp", 23), ("microcode", 213))
SNP_LEVELS: Final = Tcb(
    status=TcbStatus.UP_TO_DATE,
    components=SNP_SVNS,
    current=SNP_SVNS,
    committed=SNP_SVNS,
    launch=SNP_SVNS,
    product="Milan",
)


def authenticated(platform: str = TDX, **changes: Any) -> Authenticated:
    """Return the authenticated claims of a platform that is up to date; Nitro has no status."""
    found = Authenticated(
        report_data=bytes(64),
        device=PPID,
        tcb=Tcb(
            date=datetime(2026, 9, 1, tzinfo=timezone.utc),
            qe_date=datetime(2026, 8, 1, tzinfo=timezone.utc),
            evaluation_data_number=18,
            fmspc=b"\xa7\x7e\x57\0\0\0",
            components=(("SGX component 1", 3), ("TDX component 2", 4), ("PCE", 13)),
        ),
        chain=(b"leaf", b"root"),
        steps=(VerificationStep("signature", "passed", "signed"),),
    )
    if platform == SNP:
        found = found._replace(tcb=SNP_LEVELS)
    status = changes.pop("status", None if platform in NO_STATUS else TcbStatus.UP_TO_DATE)
    found = found._replace(**changes)
    return found._replace(tcb=replace(found.tcb, status=status))


def app_info(**changes: Any) -> AppInfo:
    """Return the app's identity."""
    found = AppInfo(
        app_id=APP_ID,
        compose_hash=COMPOSE_HASH,
        instance_id=INSTANCE_ID,
        device_id=register(0xDD, 32),
        mr_system=register(0x55, 32),
        mr_aggregated=register(0xA6, 32),
        os_image_hash=IMAGE_HASH,
        key_provider_info=KEY_PROVIDER,
        init_script_hashes=None,
    )
    return found._replace(**changes)


_APP_INFO: Final = app_info()


def rules(**arguments: Any) -> AppraisalPolicy:
    """Return the default policy with these rules, for every platform."""
    return AppraisalPolicy.default().replace(**{"platforms": VERIFIED_PLATFORMS, **arguments})


def appraise_in_steps(
    policy: AppraisalPolicy,
    evidence_claims: Claims | None = None,
    verified: Authenticated | None = None,
    info: AppInfo | None = _APP_INFO,
    **options: Any,
) -> tuple[VerificationStep, ...]:
    """Return the steps of an appraisal at NOW."""
    return policy.appraise(
        evidence_claims or claims(), verified or authenticated(), info, NOW, **options
    )


def appraise(*arguments: Any, **options: Any) -> tuple[str, ...]:
    """Return the texts of the steps of an appraisal at NOW."""
    return tuple(step.text for step in appraise_in_steps(*arguments, **options))


def get_rejection_text(reason: str, *arguments: Any, **options: Any) -> str:
    """Return the text of a rejection that must have this reason."""
    with pytest.raises(PolicyError) as caught:
        appraise(*arguments, **options)
    assert caught.value.reason == reason, caught.value
    return str(caught.value)


def result(
    evidence_claims: Claims | None = None,
    verified: Authenticated | None = None,
    info: AppInfo | None = _APP_INFO,
    *,
    simulated: bool = False,
    nonce: bytes | None = None,
    policy: AppraisalPolicy | None = None,
    bound_to: BoundTo | None = None,
    verified_at: datetime = NOW,
    evidence: object = None,
) -> AttestationResult:
    """Return the attestation result for such evidence."""
    evidence_claims, verified = evidence_claims or claims(), verified or authenticated()
    return create_result(
        claims=evidence_claims,
        advisory_ids=verified.advisory_ids,
        tcb=replace(verified.tcb, status=verified.status),
        simulated=simulated,
        bound_to=bound_to if nonce is None else "nonce",
        nonce=nonce,
        app_info=info,
        verified_at=verified_at,
        certificate_chain=verified.chain,
        policy=policy or AppraisalPolicy.default(),
        steps=(),
        _evidence=evidence,
    )


def create_policy_with_every_rule() -> AppraisalPolicy:
    """Return a policy with every rule set."""
    return AppraisalPolicy(
        accepted_statuses={TcbStatus.UP_TO_DATE, TcbStatus.CONFIGURATION_NEEDED},
        accepted_advisories=("INTEL-SA-00837",),
        refused_advisories=("INTEL-SA-00001",),
        platform_grace_period=timedelta(days=30),
        qe_grace_period=timedelta(hours=36),
        minimum_evaluation_data_number=17,
        minimum_svns=(("TDX component 2", 4), ("PCE", 13)),
        platforms=(TDX,),
        refuse_simulated=True,
        require_mr_config=True,
        require_acpi_tables=True,
        minimum_measurement_version=4,
        refuse_provisional_firmware=True,
        reference_values=ReferenceValues(
            mrtd=(register(0x11), register(0x12)), rtmr0=(register(0x20),)
        ),
        td_attributes=BitMask(must_be_set=1 << 28, must_be_clear=1 << 63),
        xfam=BitMask.exactly(bytes.fromhex("e702060000000000")),
        app_id=(APP_ID,),
        compose_hash=(COMPOSE_HASH,),
        instance_id=(INSTANCE_ID,),
        os_image_hash=(IMAGE_HASH,),
        device_id=(hashlib.sha256(PPID).digest(),),
        mr_aggregated=(register(0xA6, 32),),
        mr_system=(register(0x55, 32), register(0x56, 32)),
        key_provider=(KeyProvider(name="kms", id=b"\x30\x59"),),
        required_events=(
            RequiredEvent(name="storage-fs"),
            RequiredEvent(name="model", payload=b"weights", occurrence="last"),
        ),
        required_events_in_order=True,
        only_required_events="app",
        refuse_unnamed_td_bits=True,
        require_fixed_td_bits=True,
        minimum_qe_svn=8,
        minimum_pce_svn=13,
        refuse_dynamic_platform=True,
        refuse_cached_keys=True,
        refuse_smt=True,
        gpu=GpuRules(
            required=True,
            chips=("GH100", "LS10"),
            count=8,
            switch_count=4,
            drivers=("550.90.07", "570.124.03"),
            min_driver="550.90.07",
            vbios=("96.00.9F.00.01",),
            min_vbios="96.00.9F.00.01",
            ready_state=True,
            protected_pcie=True,
            allow_mpt=False,
            binding="report_data",
            ocsp="off",
            max_ocsp_age=timedelta(hours=12),
            ocsp_grace=timedelta(days=2),
            allow_hold=True,
            allow_absent_fwid=True,
            allow_trailing_nul=True,
            allow_runtime_event=True,
            allow_boot_result=True,
            accepted_mismatches=(9, 12),
            nras="beside",
        ),
    )


def create_snp_policy_with_every_rule() -> AppraisalPolicy:
    """Return a policy with every rule that only SEV-SNP has."""
    return AppraisalPolicy(
        accepted_statuses={TcbStatus.UP_TO_DATE},
        platforms=(SNP,),
        sev_features=(0x1, 0x21, 0x201),
        vcpus=(2, 4),
        vcpu_type=("EPYC-Milan", "EPYC-Genoa"),
        guest_policy=BitMask(must_be_set=1 << 16, must_be_clear=1 << 21),
        platform_info=BitMask(must_be_set=1 << 5),
        minimum_guest_svn=2,
        minimum_guest_abi="1.55",
        minimum_firmware="1.55.29",
        refuse_provisional_firmware=True,
        minimum_tcb={"milan": {"boot_loader": 4, "snp": 23}, "Turin": {"fmc": 1}},
        vlek_providers=("CN=cc-us-east-2.amazonaws.com",),
    )
