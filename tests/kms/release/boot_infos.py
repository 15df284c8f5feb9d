"""BootInfo values for tests of authorizations."""

from typing import Any

from attestkit.kms.release.authorization import BootInfo

APP: bytes = bytes.fromhex("5bb4ff9a3837357f19dc176407a5709c62eb6c56")
_HEX = {
    "mrAggregated": "mr_aggregated",
    "osImageHash": "os_image_hash",
    "mrSystem": "mr_system",
    "appId": "app_id",
    "composeHash": "compose_hash",
    "instanceId": "instance_id",
    "deviceId": "device_id",
    "keyProviderInfo": "key_provider_info",
}


def boot_info(**changes: Any) -> BootInfo:
    """Return a BootInfo that an authorization allows, with changes."""
    found = BootInfo(
        tee_variant="dstack-tdx",
        mr_aggregated=b"\xaa" * 32,
        os_image_hash=b"\xbb" * 32,
        mr_system=b"\xcc" * 32,
        app_id=APP,
        compose_hash=b"\xdd" * 32,
        instance_id=bytes(20),
        device_id=b"\xee" * 32,
        key_provider_info=b"",
        tcb_status="UpToDate",
        advisory_ids=(),
    )
    return found._replace(**changes)


def from_fields(fields: dict[str, Any]) -> BootInfo:
    """Return the BootInfo of a request to an authorization server."""
    values = {name: bytes.fromhex(fields[key]) for key, name in _HEX.items()}
    return boot_info(
        tee_variant=fields["teeVariant"],
        tcb_status=fields["tcbStatus"],
        advisory_ids=tuple(fields["advisoryIds"]),
        **values,
    )
