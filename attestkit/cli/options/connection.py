"""Options of commands that prove a server: `attestkit connect` and `attestkit curl`."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.exit_codes import print_error
from attestkit.cli.options.click_types import PATH, group_options
from attestkit.cli.options.verification import (
    parse_anchor,
    parse_certificate,
    parse_collateral,
    read_option_file,
)
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.client import Endpoint

_WORDS: Final = ("hardware-only", "first-use")
_MAX_CA: Final = 1 << 20  # bytes


class ConnectionOptions(NamedTuple):
    """Values of the options."""

    policy: str
    service: str
    model: str | None
    encrypt: bool
    freshness: str
    channel: str
    gpu: bool
    pins: Path | None
    server_ca: Path | None
    proxy: str | None
    max_age: float  # seconds
    timeout: float  # seconds
    collateral: Path | None
    pccs: str | None
    offline: bool
    certificates: tuple[Path, ...]
    trust_anchor: Path | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that options name; outputs must not overwrite them."""
        files = (self.collateral, self.server_ca, self.trust_anchor, self.pins, *self.certificates)
        policy = () if self.policy in _WORDS else (Path(self.policy),)
        return (*(path for path in files if path is not None), *policy)

    def connect(self, url: str) -> "Endpoint":
        """Prove a server.

        Raises:
            AttestKitError: As `attestkit.connect`.
        """
        from attestkit.client import Require, connect  # lazy: not for --help

        return connect(
            url,
            policy=self._policy(),
            service=self.service,
            model=self.model,
            encrypt=self.encrypt,
            require=Require(self.freshness, self.channel, self.gpu),  # type: ignore[arg-type]
            pins=self.pins,
            server_ca=read_option_file("--server-ca", self.server_ca, _pem),
            proxy=self.proxy,
            max_age=timedelta(seconds=self.max_age),
            timeout=self.timeout,
            **self._verifier_options(),
        )

    def _policy(self) -> Any:  # noqa: ANN401 - a word or a policy
        if self.policy in _WORDS:
            return self.policy
        from attestkit.serve.config.option_values import read_policy  # lazy: loads the server's

        return read_policy("--policy", self.policy)

    def _verifier_options(self) -> dict[str, Any]:
        if self.collateral is not None and self.pccs is not None:
            raise UsageError("--collateral and --pccs: mutually exclusive", reason="conflict")
        if self.offline and self.pccs is not None:
            raise UsageError("--offline and --pccs: mutually exclusive", reason="conflict")
        found: dict[str, Any] = {}
        if self.collateral is not None or self.offline:
            found["collateral"] = read_option_file(
                "--collateral", self.collateral, parse_collateral
            )
        elif self.pccs is not None:
            found["pccs_url"] = self.pccs
        if self.trust_anchor is not None:
            found["trust_anchor"] = read_option_file(
                "--trust-anchor", self.trust_anchor, parse_anchor
            )
        if self.certificates:
            found["snp_certificates"] = tuple(
                read_option_file("--certificate", path, parse_certificate)
                for path in self.certificates
            )
        return found


def warn_of_weak_policy(endpoint: "Endpoint") -> None:
    """Print a warning if any program was accepted, or evidence is simulated."""
    proof = endpoint.proof
    if proof.code == "nobody":
        print_error("warning: any program on sound hardware was accepted (hardware-only)")
    if proof.simulated:
        print_error("warning: the evidence is simulated, and protects nothing")


def _pem(data: bytes) -> bytes:
    if len(data) > _MAX_CA:
        raise UsageError(f"over {_MAX_CA} bytes", reason="too_large")
    return data


connection_options: Final = group_options(
    "connection",
    (
        click.option(
            "--policy",
            metavar="FILE|WORD",
            required=True,
            help="Policy that names app and OS image: a TOML file, as attestkit policy writes it; "
            "or hardware-only, which accepts any program, or first-use with --pins.",
        ),
        click.option(
            "--service",
            metavar="NAME",
            default="auto",
            show_default=True,
            help="Kind of service, such as attestkit, ra-tls, near-ai, tinfoil, vllm-proxy or aci.",
        ),
        click.option("--model", metavar="NAME", help="Model, for services that have several."),
        click.option(
            "--encrypt", is_flag=True, help="Seal requests to a key of the evidence, beside TLS."
        ),
        click.option(
            "--freshness",
            type=click.Choice(("nonce", "key possession", "none")),
            default="nonce",
            show_default=True,
            help="Least proof of freshness.",
        ),
        click.option(
            "--channel",
            type=click.Choice(("model", "gateway", "any")),
            default="model",
            show_default=True,
            help="Where the protected channel must end.",
        ),
        click.option("--gpu", is_flag=True, help="Require and verify the evidence of GPUs."),
        click.option("--pins", type=PATH, help="File of --policy first-use."),
        click.option(
            "--server-ca", type=PATH, help="CA certificates of the server in PEM; else the system's."
        ),
        click.option("--proxy", metavar="URL", help="HTTP proxy that makes a tunnel (CONNECT)."),
        click.option(
            "--max-age",
            type=click.FloatRange(1, 86400),
            default=3600,
            show_default=True,
            help="Seconds after which the server is proven anew.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0.1, 600),
            default=10,
            show_default=True,
            help="Seconds for a connection, and for an answer with evidence.",
        ),
        click.option("--collateral", type=PATH, help="Collateral of an Intel platform."),
        click.option(
            "--pccs", metavar="URL", help="Fetch collateral from this PCCS; else from Intel."
        ),
        click.option("--offline", is_flag=True, help="Fetch no collateral."),
        click.option(
            "--certificate",
            "certificates",
            type=PATH,
            multiple=True,
            help="AMD certificates for SEV-SNP evidence without them; may be repeated.",
        ),
        click.option(
            "--trust-anchor",
            type=PATH,
            help="Root certificate to trust, DER or PEM, in place of those of the vendors.",
        ),
    ),
    ConnectionOptions,
)
