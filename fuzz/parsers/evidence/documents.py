"""Targets: documents that evidence and hosts carry beside what is signed."""

import json
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any, Final

from attestkit.attestation.gcp import read_uki_hash
from attestkit.attestation.launch.mr_config import MrConfig, config_id_v3
from attestkit.attestation.launch.os_image import (
    _document,
    _tdx_launch,
    expected_snp_measurement,
)
from attestkit.attestation.launch.vm_config import VmConfig, choose_config
from attestkit.backends.simulator.images.os_image import (
    ImageConfig,
    simulated_image,
    simulated_snp_image,
)
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.sys_config import SysConfig
from attestkit.errors import ConfigError, FormatError
from attestkit.event_log import WireEvent
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from tests.vectors import data


def _vm_config(raw: bytes) -> VmConfig:
    """Read text, in which what is no UTF-8 becomes half a surrogate pair."""
    return VmConfig.parse(raw.decode("utf-8", "surrogateescape"))


def _used_vm_config(raw: bytes, found: VmConfig) -> None:
    tried(lambda: found.os_image_hash, len(raw), FormatError)
    found.find("mr_config")
    text = raw.decode("utf-8", "surrogateescape")
    reordered = json.dumps(dict(list(found.outer.items())[::-1]), ensure_ascii=False)
    check_same("beside itself", choose_config(text, reordered), text or reordered)


def vm_config_samples() -> list[bytes]:
    """Return configurations, one of them inside that of a whole system."""
    plain = simulated_image().vm_config
    return [plain.encode(), json.dumps({"vm_config": plain}).encode(), b"", b"{}"]


def _mr_config(raw: bytes, found: MrConfig) -> None:
    check_same("the document", found.document, raw)
    check_same("its id", len(config_id_v3(raw)), 48)
    json.loads(found.key_provider_info)
    tried(found.check_lengths, len(raw), FormatError)


def mr_config_samples() -> list[bytes]:
    """Return documents of version 3."""
    fields = {
        "version": 3,
        "app_id": "aa" * 20,
        "compose_hash": "bb" * 32,
        "gpu_policy_hash": "",
        "key_provider": "kms",
        "key_provider_id": "00",
        "instance_id": "",
        "init_script_hashes": ["cc" * 32],
    }
    return [json.dumps(fields).encode(), b'{"key_provider":"none","compose_hash":""}']


_ACPI: Final = tuple(
    WireEvent(0, 10, bytes(48), name, b"ACPI DATA")
    for name in ("acpi-loader", "acpi-rsdp", "acpi-tables")
)


_GCP = b"g\xa2\x67version\x01\x68uki_auth\x58\x20" + bytes(32)


def _os_image(raw: bytes) -> object:
    """Read a measurement document under the hash that names it; the first byte chooses which."""
    kind, document = raw[:1], raw[1:]
    snp = kind == b"s"
    platform = "gcp" if kind == b"g" else "snp" if snp else "tdx"
    checksums = f"{sha256(document).hexdigest()}  measurement.{platform}.cbor\n".encode()
    texts = {
        "checksum_file": b64encode(checksums).decode(),
        "measurement": b64encode(document).decode(),
    }
    if kind == b"g":
        return read_uki_hash(_document("gcp", texts, sha256(checksums).digest()))
    fields: dict[str, Any] = {"os_image_hash": sha256(checksums).hexdigest()}
    if snp:
        launch = {**texts, "vcpus": 1, "vcpu_type": "EPYC-v4", "guest_features": 1}
        fields["sev_snp_measurement"] = json.dumps(launch)
        return expected_snp_measurement(VmConfig(fields, fields))
    fields |= {"tdx_attestation_variant": "lite", "memory_size": 1 << 32, "tdx_measurement": texts}
    return _tdx_launch(VmConfig(fields, fields)).registers(_ACPI)


def os_image_samples() -> list[bytes]:
    """Return the simulator's measurement documents."""
    images = (ImageConfig(), ImageConfig(measurement_version=3))
    tds = [json.loads(simulated_image(one).vm_config)["tdx_measurement"] for one in images]
    guest = json.loads(simulated_snp_image().sev_snp_measurement)
    documents = [b64decode(found["measurement"]) for found in (*tds, guest)]
    return [*(b"t" + td for td in documents[:2]), b"s" + documents[2], b"t\xa0", b"s\xa0", _GCP]


# -- what an application and its machine are deployed from -----------------------------------------


def _app_compose(raw: bytes, found: AppCompose) -> None:
    check_same("the file", found.raw, raw)
    check_same("sizes", (len(found.compose_hash), len(found.gpu_policy_hash)), (32, 32))
    check_same("hashes of scripts", len(found.init_script_hashes), len(found.init_scripts))
    repr(found)


def app_compose_samples() -> list[bytes]:
    """Return files with every key, and the least of them."""
    least = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
    more = least | {
        "manifest_version": "3",
        "init_script": ["a", "b"],
        "swap_size": "16 MiB",
        "key_provider": "tpm",
        "key_provider_id": "00",
        "event_log_version": 2,
        "port_policy": {"ports": [{"port": 80, "pp": True}], "restrict_mode": True},
        "requirements": {
            "os_version": ">=0.5.1, <1",
            "gpu_policy": {"rego": "x"},
            "health_check": True,
            "health_status_file": "/run/health",
        },
        "storage_discard": False,
        "verity_volumes": [{"source": "s", "verity_root": "ab" * 32, "target": "/data"}],
        "allowed_envs": ["NAME"],
    }
    real = data("dstack/simulator/app-compose.json")
    return [json.dumps(least).encode(), json.dumps(more).encode(), real]


def _sys_config(_raw: bytes, found: SysConfig) -> None:
    check_same("vm_config", found.vm, found.vm)
    check("where collateral is", type(found.pccs) in {str, type(None)})
    len(found.mr_config_document)
    repr(found)


def sys_config_samples() -> list[bytes]:
    """Return files as hosts write them."""
    plain = {"vm_config": simulated_image().vm_config, "pccs_url": "https://pccs"}
    least = {"vm_config": "{}", "collateral_urls": {"pccs": "https://pccs", "amd_kds": None}}
    real = data("dstack/simulator/sys-config.json")
    return [json.dumps(plain).encode(), json.dumps(least).encode(), real]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    vm_config = obeys(_vm_config, FormatError, accepted=_used_vm_config)
    mr_config = obeys(MrConfig.parse, FormatError, accepted=_mr_config)
    os_image = obeys(_os_image, FormatError)
    app_compose = obeys(AppCompose.parse, ConfigError, accepted=_app_compose)
    sys_config = obeys(SysConfig.parse, ConfigError, accepted=_sys_config)
    return [
        ParserTarget("vm_config", vm_config, short(vm_config_samples), "config.dict"),
        ParserTarget("mr_config", mr_config, short(mr_config_samples, 2048), "config.dict", 2048),
        ParserTarget("os_image", os_image, short(os_image_samples, 1024), "cbor.dict", 1024),
        ParserTarget("app_compose", app_compose, short(app_compose_samples), "config.dict"),
        ParserTarget("sys_config", sys_config, short(sys_config_samples), "config.dict"),
    ]
