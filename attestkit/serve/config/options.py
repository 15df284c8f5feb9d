"""Options of the server, from its command line and its configuration file.

A configuration file may give most of them. `with_config` merges it below the command line and the
environment, and keeps the source of each value for errors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.option_values import OFF, Address, parse_address

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "emit_event": ("on", "removed"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
    "platform": (
        *("tdx", "snp", "azure-snp", "azure-tdx", "gcp-snp", "gcp-tdx"),
        *("aws-snp", "aws-nitro-tpm", "tpm"),
    ),
    "quote_version": ("4", "5"),
}
"""Values of the options that have a fixed set of them."""

_Text: TypeAlias = str | None
_Texts: TypeAlias = tuple[str, ...] | None
INTERNAL: Final = frozenset({"ident", "data_disks", "limited_sockets", "sources"})
"""Fields that a configuration file or another option sets."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
# Alternatives: one of them on a higher level overrides all of them on a lower one.
_RIVALS: Final = (
    frozenset({"seed", "seed_file"}),
    frozenset({"verifier_pccs", "verifier_collateral"}),
)
_VARIABLES: Final = {
    "backend": "ATTESTKIT_BACKEND",
    "emit_event": "ATTESTKIT_EMIT_EVENT",
    "limited_sockets": "ATTESTKIT_LIMITED_SOCKETS",
    "verifier_pccs": "PCCS_URL",
}


class Options(NamedTuple):
    """Options of the command line and the configuration file; None if not given.

    The annotation of a field contains the type and the option's metavar: the placeholder of its
    value in --help, omitted for options without a value and for those in CHOICES. The texts below
    are those of --help. Fields in INTERNAL have no option. `sources` has file and key of each value
    from a configuration file.

    Attributes:
        config: configuration file of the agent, TOML or JSON
        backend: backend, auto (default), or none for a verifier
        watchdog: send WATCHDOG=1 to the service manager every half of $WATCHDOG_USEC
        json: write the ready message as JSON
        dir: folder of the unix sockets
        socket: default: DIR/dstack.sock; none: off; with a list of methods, such as
            quote-only.sock=GetQuote,Info,Version, one more socket that serves nothing else; may be
            repeated
        tappd_socket: default: DIR/tappd.sock; none: off
        socket_mode: default: 600 for the simulator, 660 on hardware
        socket_group: name or number
        http: external listener; port 0 selects a free one, unix:PATH is a socket, none is off;
            default: 127.0.0.1:{port} for the simulator, 0.0.0.0:{port} on hardware; a simulator on
            loopback accepts loopback names in the Host header only
        auth_key: require a JWT on the external listener, signed with this Ed25519 key: 64 hex
            digits, or a file in PEM; may be repeated; default: no token is required
        anonymous_scopes: scopes that need no token, such as version,health; default: none
        guest_api: GuestApi for the host, such as vsock:8000, vsock:CID:PORT or unix:PATH; default:
            off
        guest_api_shutdown: let the host power off this machine by GuestApi.Shutdown
        limits: limit of the listeners, such as body=4MiB or idle_seconds=30s; may be repeated;
            names: {limits}
        app_keys: the agent's .appkeys.json
        app_compose: the agent's app-compose.json
        sys_config: the agent's .sys-config.json
        app_id: app id to measure, 20 bytes; default: of the compose hash
        measure_app: on hardware without a boot sequence: measure the app into RTMR3 first; the
            simulator always does
        kms_url: KMS that releases the app's keys while the app boots, and signs its certificates;
            may be repeated: they are tried in order
        kms_root: root keys of a trusted KMS: JSON of KmsRoot; may be repeated; first-use trusts any
            KMS; may be missing only if the app's key_provider_id pins the KMS
        emit_event: method EmitEvent: on (default), or removed, which refuses it as agents since
            dstack 0.6.0 do
        seed: seed of 32 bytes from which everything is derived
        seed_file: file with the seed, raw or in hex
        state_dir: folder of the seed and the registers
        reset: reboot the TD, which resets registers and events
        dev_http: all methods over TCP, on loopback only
        pccs_http: serve the simulator's collateral as a PCCS
        platform: simulated platform: {platforms}; those of clouds keep no state but the seed;
            default: tdx
        quote_version: 4 (default), with a TD 1.0 body, or 5
        boot_image: dstack image (folder or archive) that the simulated guest boots
        gpus: simulated NVIDIA GPUs, 1 to 16; 8 come with NVSwitches
        scenario: simulate a named defect of the TEE or its collateral
        fault: fault to inject, and how often, such as ebusy:3 or slow:2s; may be repeated
        kms: serve a simulated KMS over HTTPS, which releases keys to guests of simulators with this
            seed; it protects nothing
        kms_auth: what decides who gets keys: dev (default) allows every verified guest; a file of
            auth-simple; or the URL of a webhook
        kms_policy: instead of --kms-auth, the appraisal policy of an app that gets keys; may be
            repeated
        kms_domain: DNS name or IP address in its certificate; default: localhost
        kms_onboarding: a KMS without keys waits for Bootstrap or Onboard over plain HTTP; not with
            --seed
        kms_admin: ClearImageCache over HTTP, with the token in $DSTACK_KMS_ADMIN_TOKEN; default:
            off
        kms_fault: fault of the KMS, such as kms_refuses:3 or kms_slow:2s; may be repeated
        verifier: verifier service; port 0 selects a free one; default: off; see --backend
        verifier_pccs: PCCS for collateral; default: $PCCS_URL, else nothing is fetched
        verifier_collateral: collateral instead of a PCCS
        verifier_certificates: AMD certificates (PEM or DER) for SEV-SNP evidence without them
        verifier_crls: revocation lists of AMD (PEM or DER); SEV-SNP evidence is then rejected
            without a current one of its product
        verifier_ak_certificates: certificates and CRLs of CAs that certify keys of TPMs (PEM or
            DER)
        verifier_ak_roots: roots of keys of TPMs (PEM or DER), instead of Google's and AWS's for
            evidence of a TPM alone
        verifier_fetch_ak_certificates: fetch missing ones, and their CRLs, from the addresses that
            Google's certificates name
        verifier_gpu_roots: roots of GPUs to trust in place of NVIDIA's: that of devices, then that
            of reference manifests (PEM)
        verifier_gpu_endorsements: reference manifests, OCSP answers and keys of NVIDIA's
            attestation service for GPUs: JSON of GpuEndorsements
        verifier_policy: appraisal policy: strict, default or development, or a file
        trust_anchor: root certificate, DER or PEM, instead of the vendors'; a simulator writes its
            own to DIR/trust-anchor.pem; or all roots of a simulated machine, JSON of SimulatedRoots
        images: folder of dstack OS images, each in a folder or .tar.gz named by its hash, that
            prove the OS image and the ACPI tables of TDs
        ear_key: private key that signs results (/verify?format=ear): Ed25519 or P-256 in PEM, or 32
            raw bytes of Ed25519, in a file with mode 0600
        verifier_cache: folder of cached collateral, shared by processes; default: in memory
        verifier_metrics: GET /metrics of a verifier without an agent, for all its workers; default:
            off
        workers: number of worker processes; only with --backend none
        log_format: default: text, one line per record
        log_level: minimum level; default: info
        access_log: log every request, without its query; default: off
    """

    config: Annotated[_Text, "FILE"] = None
    backend: Annotated[_Text, "NAME"] = None
    watchdog: bool = False
    json: bool = False

    dir: Annotated[_Text, "DIR"] = None
    socket: Annotated[_Text, "PATH[=METHODS]"] = None
    tappd_socket: Annotated[_Text, "PATH"] = None
    socket_mode: Annotated[_Text, "OCTAL"] = None
    socket_group: Annotated[_Text, "GROUP"] = None
    http: Annotated[_Text, "HOST:PORT"] = None
    auth_key: Annotated[_Texts, "KEY"] = None
    anonymous_scopes: Annotated[_Text, "SCOPES"] = None
    guest_api: Annotated[_Text, "vsock:PORT"] = None
    guest_api_shutdown: bool = False
    limits: Annotated[Mapping[str, Any], "NAME=VALUE"] = _NOTHING

    app_keys: Annotated[_Text, "FILE"] = None
    app_compose: Annotated[_Text, "FILE"] = None
    sys_config: Annotated[_Text, "FILE"] = None
    app_id: Annotated[_Text, "HEX"] = None
    measure_app: bool = False
    kms_url: Annotated[_Texts, "URL"] = None
    kms_root: Annotated[_Texts, "FILE"] = None
    emit_event: _Text = None

    seed: Annotated[_Text, "HEX"] = None
    seed_file: Annotated[_Text, "FILE"] = None
    state_dir: Annotated[_Text, "DIR"] = None
    reset: bool = False
    dev_http: Annotated[_Text, "HOST:PORT"] = None
    pccs_http: Annotated[_Text, "HOST:PORT"] = None
    platform: Annotated[_Text, "NAME"] = None
    quote_version: Annotated[_Text, "N"] = None
    boot_image: Annotated[_Text, "PATH"] = None
    gpus: Annotated[_Text, "N"] = None
    scenario: Annotated[_Text, "NAME"] = None
    fault: Annotated[_Texts, "SPEC"] = None

    kms: Annotated[_Text, "HOST:PORT"] = None
    kms_auth: Annotated[_Text, "AUTH"] = None
    kms_policy: Annotated[_Texts, "FILE"] = None
    kms_domain: Annotated[_Text, "NAME"] = None
    kms_onboarding: bool = False
    kms_admin: Annotated[_Text, "HOST:PORT"] = None
    kms_fault: Annotated[_Texts, "SPEC"] = None

    verifier: Annotated[_Text, "HOST:PORT"] = None
    verifier_pccs: Annotated[_Text, "URL"] = None
    verifier_collateral: Annotated[_Text, "FILE"] = None
    verifier_certificates: Annotated[_Text, "FILE"] = None
    verifier_crls: Annotated[_Text, "FILE"] = None
    verifier_ak_certificates: Annotated[_Text, "FILE"] = None
    verifier_ak_roots: Annotated[_Text, "FILE"] = None
    verifier_fetch_ak_certificates: bool = False
    verifier_gpu_roots: Annotated[_Text, "FILE"] = None
    verifier_gpu_endorsements: Annotated[_Text, "FILE"] = None
    verifier_policy: Annotated[_Text, "NAME|FILE"] = None
    trust_anchor: Annotated[_Text, "FILE"] = None
    images: Annotated[_Text, "DIR"] = None
    ear_key: Annotated[_Text, "FILE"] = None
    verifier_cache: Annotated[_Text, "DIR"] = None
    verifier_metrics: Annotated[_Text, "HOST:PORT"] = None
    workers: Annotated[_Text, "N"] = None

    log_format: _Text = None
    log_level: _Text = None
    access_log: bool | None = None

    ident: _Text = None
    data_disks: _Texts = None
    limited_sockets: _Texts = None  # values of --socket with methods
    sources: Mapping[str, str] = _NOTHING

    def named(self, field: str) -> str:
        """Return the source of the option `field` for errors: `--name`, or file and key."""
        name = "socket" if field == "limited_sockets" else field
        return self.sources.get(field) or f"--{name.replace('_', '-')}"

    def prefix(self, field: str) -> str:
        """Return the start of an error about the option `field`: `--name`, or file, key, colon."""
        return f"{self.named(field)}:" if field in self.sources else self.named(field)

    def error(
        self, field: str, problem: str, reason: Literal["conflict", "wrong_value"] = "conflict"
    ) -> "ConfigError | UsageError":
        """Return the error of an option: ConfigError if its value is from the configuration file.

        Args:
            field: Name of the field of Options.
            problem: Text of the error after the option's name and a colon.
            reason: Reason of the error.
        """
        kind = ConfigError if field in self.sources else UsageError
        return kind(f"{self.named(field)}: {problem}", reason=reason)

    def wrong_value(self, field: str, problem: str) -> "ConfigError | UsageError":
        """Return the error of an option with an invalid value: name, `problem` and value."""
        return self.error(field, f"{problem}: {getattr(self, field)}", "wrong_value")

    def first_given(self, names: Sequence[str]) -> str | None:
        """Return the first of the fields `names` with a value, other than "none"; else None."""
        return next((name for name in names if getattr(self, name) not in {None, False, OFF}), None)

    def path(self, field: str) -> Path | None:
        """Return the path in the value of the option `field`, made absolute; None if not given."""
        text: str | None = getattr(self, field)
        return None if text is None else Path(text).absolute()

    def address(self, field: str, default: Address | None = None) -> Address | None:
        """Return the address in the value of the option `field`; None if the value is `none`.

        Without a value, return `default`.

        Raises:
            UsageError: If the option has an invalid address.
            ConfigError: If the configuration file has one.
        """
        text: str | None = getattr(self, field)
        if text is None:
            return default
        try:
            return None if text == OFF else parse_address(text)
        except UsageError as error:
            raise self.wrong_value(field, str(error)) from error


def list_options(first: str, end: str) -> tuple[str, ...]:
    """Return the names of the fields of Options from `first` up to, but not with, `end`."""
    return Options._fields[Options._fields.index(first) : Options._fields.index(end)]


KMS_OPTIONS: Final = list_options("kms", "verifier")
"""Options of the simulated KMS."""

SIMULATOR_OPTIONS: Final = list_options("seed", "verifier")
"""Options that are refused on hardware."""

FLAGS: Final = frozenset(
    {name for name, kind in Options.__annotations__.items() if kind in {bool, bool | None}}
)
"""Boolean options."""

REPEATED: Final = frozenset(
    {name for name, kind in Options.__annotations__.items() if get_args(kind)[:1] == (_Texts,)}
)
"""Options with a list of values; in a configuration file, one text stands for a list of it."""


class Config(NamedTuple):
    """Content of a configuration file.

    Attributes:
        values: Values by the name of a field of Options.
        sources: File and key of each of these values, for errors.
        limits: Values by the name of a field of Limits: bytes, seconds or counts.
        unused: Keys of the agent that have no effect here.
        unknown: Unknown keys.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    limits: Mapping[str, float]
    unused: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def split_sockets(values: Sequence[str]) -> tuple[_Text, tuple[str, ...] | None]:
    """Return the path of dstack.sock and the limited sockets among the values of --socket.

    The last path counts. A limited socket has `=` in its file name. Both default to None.
    """
    limited = tuple(value for value in values if "=" in value.rpartition("/")[2])
    paths = [value for value in values if value not in limited]
    return (paths[-1] if paths else None), limited or None


def with_config(options: Options, config: Config, environ: Mapping[str, str]) -> Options:
    """Return `options`, completed by the values of a configuration file, with their sources.

    The command line and the environment variables (`environ`) override the file: a value of the
    file is used if neither gives the option or its alternative (as --seed-file for --seed).
    """

    def is_settled(field: str) -> bool:
        rivals = next((group for group in _RIVALS if field in group), {field})
        return any(
            getattr(options, rival) not in {None, False} or environ.get(_VARIABLES.get(rival, ""))
            for rival in rivals
        )

    said = {field: value for field, value in config.values.items() if not is_settled(field)}
    if options.access_log is False:
        said.pop("access_log", None)
    return options._replace(
        **said,
        limits={**config.limits, **options.limits},
        sources={field: config.sources[field] for field in said},
    )
