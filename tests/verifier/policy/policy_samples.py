"""Claims and makers' words made by hand, which every preset accepts, and changes to them."""

from datetime import datetime, timezone
from typing import Any, Final

import pytest

from attestkit.attestation import AppInfo
from attestkit.errors import PolicyError
from attestkit.event_log.event import Event
from attestkit.event_log.runtime_events import runtime_event
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.result import (
    AttestationResult,
    Authenticated,
    Claims,
    Tcb,
    TcbStatus,
    Verdict,
    accepted,
)

NOW: Final = datetime(2026, 9, 21, 14, 13, 20, tzinfo=timezone.utc)
APP_ID: Final = b"\x0a" * 20
COMPOSE_HASH: Final = b"\x0c" * 32
INSTANCE_ID: Final = b"\x1d" * 20
IMAGE_HASH: Final = b"\x05" * 32
PPID: Final = b"\x0d" * 16
KEY_PROVIDER: Final = b'{"name":"kms","id":"3059"}'
SEPT_VE_DISABLE: Final = bytes.fromhex("0000001000000000")
XFAM: Final = bytes.fromhex("e702060000000000")

TDX: Final = "dstack-tdx"
SNP: Final = "dstack-amd-sev-snp"
NITRO: Final = "dstack-nitro-enclave"
SGX: Final = "sgx"


def register(number: int, size: int = 48) -> bytes:
    """Return a value that no other number has."""
    return bytes([number]) * size


def events(*extra: tuple[str, bytes]) -> tuple[Event, ...]:
    """Return the events of a boot, then the application's."""
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
        "mr_seam": register(0x61),
        "mr_signer_seam": bytes(48),
        "mr_config_id": b"\1" + register(0x62, 47),
        "mr_owner": register(0x63),
        "mr_owner_config": register(0x64),
        "mr_service_td": bytes(48),
    },
    SNP: {
        "policy": (0x30000).to_bytes(8, "little"),
        "id_key_digest": register(0x71),
        "author_key_digest": register(0x72),
        "chip_id": register(0x73, 64),
    },
    NITRO: {},
    SGX: {"attributes": bytes.fromhex("0500000000000000e700000000000000")},
}


def claims(platform: str = TDX, **changed: Any) -> Claims:
    """Return what a guest of a platform says; a register or attribute of None is left out."""
    registers, attributes = dict(REGISTERS[platform]), dict(ATTRIBUTES[platform])
    for table in (registers, attributes):
        for name in [name for name in changed if name in table]:
            value = changed.pop(name)
            table.pop(name)
            if value is not None:
                table[name] = value
    measured = platform == TDX
    found = Claims(
        platform=platform,
        report_data=bytes(64),
        registers=tuple(registers.items()),
        attributes=tuple(attributes.items()),
        events=events(("model", b"weights")) if measured else (),
        event_registers=(0, 1, 2, 3) if measured else (),
        os_image_hash=IMAGE_HASH,
    )
    return found._replace(**changed)


def bare_claims() -> Claims:
    """Return what a quote without its log says."""
    return claims(events=(), event_registers=(), os_image_hash=b"")


def authenticated(**changed: Any) -> Authenticated:
    """Return the maker's word on a platform that is up to date."""
    found = Authenticated(
        status=TcbStatus.UP_TO_DATE,
        advisory_ids=(),
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
        steps=("signed",),
    )
    return found._replace(**changed)


def app_info(**changed: Any) -> AppInfo:
    """Return who the app is."""
    found = AppInfo(
        app_id=APP_ID,
        compose_hash=COMPOSE_HASH,
        instance_id=INSTANCE_ID,
        device_id=register(0xDD, 32),
        mr_system=bytes(32),
        mr_aggregated=bytes(32),
        os_image_hash=IMAGE_HASH,
        key_provider_info=KEY_PROVIDER,
        init_script_hashes=None,
    )
    return found._replace(**changed)


_APP_INFO: Final = app_info()


def rules(**given: Any) -> AppraisalPolicy:
    """Return the default policy with these rules."""
    return AppraisalPolicy.default().replace(**given)


def judged(
    policy: AppraisalPolicy,
    of: Claims | None = None,
    word: Authenticated | None = None,
    info: AppInfo | None = _APP_INFO,
    **options: Any,
) -> tuple[str, ...]:
    """Return the steps of an appraisal at NOW."""
    return policy.appraise(of or claims(), word or authenticated(), info, NOW, **options)


def refused(reason: str, *given: Any, **options: Any) -> str:
    """Return the text of a refusal, which must be for that reason."""
    with pytest.raises(PolicyError) as caught:
        judged(*given, **options)
    assert caught.value.reason == reason, caught.value
    return str(caught.value)


def result(
    of: Claims | None = None,
    word: Authenticated | None = None,
    info: AppInfo | None = _APP_INFO,
) -> AttestationResult:
    """Return the result for evidence of that kind."""
    of, word = of or claims(), word or authenticated()
    return accepted(
        Verdict(
            claims=of,
            tcb_status=word.status,
            advisory_ids=word.advisory_ids,
            tcb=word.tcb,
            simulated=False,
            app_info=info,
            verified_at=NOW,
            certificate_chain=word.chain,
            steps=(),
        )
    )
