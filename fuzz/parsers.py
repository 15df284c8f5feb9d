"""Every target by its name, and which of them reads what through which module."""

from typing import Final

from fuzz import (
    parser_agents,
    parser_certificates,
    parser_collateral,
    parser_documents,
    parser_evidence,
    parser_journal,
    parser_logs,
    parser_reports,
    parser_server,
    parser_settings,
)
from fuzz.parser_contract import ParserTarget

__all__ = ["LEFT_OUT", "READERS", "TARGETS", "ParserTarget"]

_FILES: Final = (
    parser_reports,
    parser_logs,
    parser_journal,
    parser_evidence,
    parser_documents,
    parser_certificates,
    parser_collateral,
    parser_settings,
    parser_server,
    parser_agents,
)

TARGETS: Final[dict[str, ParserTarget]] = {
    target.name: target for file in _FILES for target in file.targets()
}

READERS: Final[dict[str, str]] = {
    "_crypto.amd_extension": "amd_extension",
    "_crypto.certificates": "certificate",
    "_crypto.chain": "chain",
    "_crypto.ecdsa": "app_keys",
    "_crypto.pem": "pem",
    "_crypto.sgx_extension": "sgx_extension",
    "_crypto.x509": "crl",
    "_crypto.x509_path": "path_certificate",
    "_json": "app_keys",
    "_toml": "policy",
    "_typed_json": "app_compose",
    "app_compose": "app_compose",
    "attestation": "attestation",
    "attestation.agent_response": "agent_response",
    "attestation.app_info": "app_info",
    "attestation.cbor": "cbor",
    "attestation.cert_request": "cert_request",
    "attestation.cose": "nitro",
    "attestation.document": "v1_msgpack",
    "attestation.json_text": "mr_config",
    "attestation.mr_config": "mr_config",
    "attestation.snp_launch": "os_image",
    "attestation.tdx_launch": "os_image",
    "attestation.v0_scale": "v0_scale",
    "attestation.v1_msgpack": "v1_msgpack",
    "attestation.v1_tdx": "v1_msgpack",
    "attestation.vm_config": "vm_config",
    "backends.agent_client": "agent",
    "backends.dstack_agent": "agent",
    "backends.qgs": "qgs",
    "backends.recording.calls": "recording",
    "backends.recording.host": "recording",
    "backends.recording.recording_file": "recording",
    "backends.simulator.emulated_kernel": "options",
    "backends.simulator.faults": "options",
    "backends.simulator.state": "simulator_state",
    "backends.kernel_release": "options",
    "cli.certificate_text": "certificate_text",
    "cli.recognise": "file",
    "collateral": "collateral",
    "collateral.parts": "part_window",
    "collateral.pccs_client": "pccs",
    "collateral.signed_body": "signed_body",
    "env_encryption": "environment",
    "event_log": "event_log",
    "event_log.agent_json": "agent_json",
    "event_log.runtime": "runtime_lines",
    "event_log.tcg": "tpm_log",
    "keys.agent_keys": "agent",
    "keys.app_keys": "app_keys",
    "keys.app_keys_file": "app_keys",
    "quote": "quote",
    "ra_tls.certificate": "ra_tls",
    "report_data": "options",
    "serve.address": "options",
    "serve.config": "server_config",
    "serve.json_codec": "json_codec",
    "serve.limits": "options",
    "serve.logs.form": "docker_frames",
    "serve.logs.frames": "docker_frames",
    "serve.logs.parameters": "log_parameters",
    "serve.protobuf_codec": "protobuf",
    "serve.query": "query",
    "serve.seed": "options",
    "serve.verification": "verify_request",
    "snp_certificates": "snp_certificates",
    "snp_report": "snp_report",
    "sys_config": "sys_config",
    "td_report": "td_report",
    "verifier.bundle": "bundle",
    "verifier.pck_chain": "pck_chain",
    "verifier.policy": "policy",
    "verifier.policy_toml": "policy",
    "verifier.snp_chain": "snp_endorsements",
    "verifier.tcb_info": "tcb_info",
}
"""Modules of attestkit with a function that reads, and the target that gets there."""

_DEVICE: Final = "reads a device or a file; what is in it is parsed elsewhere"
_BENCH: Final = "calls the peers of benchmarks"
_OWNER: Final = "whoever starts the program says it, and it is short"

LEFT_OUT: Final[dict[str, str]] = {
    "_native._python_quote": "the plain twin of the core, which runs under the target quote",
    "attester": "opens a backend by its name",
    "attester.snp": "wraps SnpReport.parse, the target snp_report",
    "attester.source": "wraps Quote.parse, the target quote",
    "backends": "loads a backend by its name",
    "backends.beneath": _DEVICE,
    "backends.device_calls": _DEVICE,
    "backends.quote_ioctl": _OWNER,
    "backends.simulator.fuse_operations": "operations of a mount, which tests/rigs has",
    "backends.tsm_files": _DEVICE,
    "cli": _OWNER,
    "cli.bench_logs": _BENCH,
    "cli.bench_quotes": _BENCH,
    "cli.parameters": _OWNER,
    "event_log.journal_files": "reads files; the target journal has them in memory",
    "serve.options": _OWNER,
    "serve.policy_option": "wraps AppraisalPolicy.load, the target policy",
    "serve.service_manager": _OWNER,
    "serve.supervised": _OWNER,
    "serve.system": "reads the kernel's own files",
}
"""Modules whose functions are called like readers, and why they have no target."""
