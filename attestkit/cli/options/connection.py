"""Options of commands that prove a server: `attestkit connect` and `attestkit curl`."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit._sanitize import one_line, shown
from attestkit.cli.exit_codes import print_error
from attestkit.cli.options import option
from attestkit.cli.options.option import FiniteRange
from attestkit.cli.options.option_files import (
    parse_anchor,
    parse_certificate,
    parse_collateral,
    read_option_file,
    read_option_files,
)
from attestkit.cli.output import console
from attestkit.errors import FormatError, ServiceError, UsageError

if TYPE_CHECKING:
    from attestkit.client import Endpoint, Proof, ProofBundle, Require

_WORDS: Final = ("hardware-only", "first-use")
_MAX_CA: Final = 1 << 20  # bytes
_MAX_HEADERS: Final = 1 << 16  # bytes
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"[\t -~]*")


class ConnectionOptions(NamedTuple):
    """Values of the options of `connect` and `curl`, as given; None for optional ones not given.

    Attributes:
        policies: Policies: a file or word, or ROLE=FILE for each role.
        service: Kind of service, such as `near-ai`; `auto`: found.
        model: Name of the model, for services that have several.
        encrypt: Whether requests are sealed to a key of the evidence.
        evidence_headers: Headers of the request for evidence, as for `read_headers`.
        allow_open: Fields of requests that are not sealed with `encrypt`.
        freshness: Required proof of freshness: `nonce`, `key possession` or `none`.
        channel: Required end of TLS: `model`, `gateway` or `any`.
        gpu: Whether evidence of GPUs is required.
        pins: File of the policy `first-use`.
        server_ca: File of CA certificates in PEM; None: the system's.
        proxy: URL of an HTTP proxy.
        max_age: Seconds after which the server is verified again.
        timeout: Seconds for a connection.
        collateral: File of Intel's collateral.
        pccs: URL of the PCCS.
        offline: Whether no collateral is fetched.
        certificates: Files of AMD's certificates.
        trust_anchor: File of the root in place of the vendors'.
    """

    policies: tuple[str, ...]  # a file or word, or ROLE=FILE of each role
    service: str
    model: str | None
    encrypt: bool
    evidence_headers: tuple[str, ...]
    allow_open: tuple[str, ...]
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
        """Files that options name; outputs must not overwrite them.

        Raises:
            UsageError: If a policy with `=`, or one of several, is not ROLE=FILE, or two are of the
                same role.
        """
        files = (self.collateral, self.server_ca, self.trust_anchor, self.pins, *self.certificates)
        policies = (Path(name) for name in self._policy_files().values() if name not in _WORDS)
        given = (path for path in files if path is not None)
        return (*given, *policies, *header_files(self.evidence_headers))

    def connect(self, url: str) -> "Endpoint":
        """Verify the evidence of the server at `url` with these options, and return the server.

        Raises:
            AttestKitError: As `attestkit.connect`.
        """
        from attestkit.client import connect  # lazy: not for --help

        headers = dict(read_headers("--evidence-header", self.evidence_headers))
        options: dict[str, Any] = {
            "policy": self._policy(),
            "evidence_headers": headers or None,
            "require": self._require(),
            "server_ca": read_option_file("--server-ca", self.server_ca, _authorities),
            "max_age": timedelta(seconds=self.max_age),
            **self._verifier_options(),
        }
        for name in ("service", "model", "encrypt", "allow_open", "pins", "proxy", "timeout"):
            options[name] = getattr(self, name)
        if self.gpu and not self.offline:
            from attestkit.gpu import GpuServices  # lazy: of GPUs only

            options["gpu_services"] = GpuServices()  # also with --collateral, which is Intel's
        with console.progress(f"proving {shown(url)}"):
            return connect(url, **options)

    def verify(self, bundle: "ProofBundle", now: datetime | None) -> "Proof":
        """Verify a saved proof, offline.

        Args:
            bundle: The proof.
            now: Time of the verification, aware; None is that of the bundle.

        Raises:
            AttestKitError: As `attestkit.client.verify_proof`.
        """
        from attestkit.client import verify_proof  # lazy: as above

        options = self._verifier_options()
        return verify_proof(
            bundle,
            policy=self._policy(),
            require=self._require(),
            now=now,
            use_bundle_time=now is None,
            **options,
        )

    def check_offline(self, given: Mapping[str, object]) -> None:
        """Check that no option of a connection is given with a saved proof.

        Args:
            given: Values of the command's own options of connections, by option such as `--serve`.

        Raises:
            UsageError: If one of `given`, --pins, --server-ca, --proxy or --pccs is not None.
        """
        own = {"--pins": self.pins, "--server-ca": self.server_ca}
        for name, value in {**given, **own, "--proxy": self.proxy, "--pccs": self.pccs}.items():
            if value is not None:
                raise UsageError(f"{name}: excludes --bundle", reason="conflict")

    def _require(self) -> "Require":
        from attestkit.client import Require  # lazy: as above

        return Require(self.freshness, self.channel, self.gpu)  # type: ignore[arg-type] # by click

    def _policy_files(self) -> dict[str, str]:
        """Return the policies by role, each as a path or a word; the role "" is for all servers.

        Words are `hardware-only` and `first-use`.
        """
        only = self.policies[0]
        if len(self.policies) == 1 and ("=" not in only or Path(only).is_file()):
            return {"": only}
        found: dict[str, str] = {}
        for text in self.policies:
            role, separator, name = text.partition("=")
            if not (separator and role and name) or name in _WORDS:
                message = f"--policy {shown(text)}: with several, each must be ROLE=FILE"
                raise UsageError(message, reason="wrong_value")
            if role in found:
                message = f"--policy {shown(text)}: second policy of a role; give one for each"
                raise UsageError(message, reason="conflict")
            found[role] = name
        return found

    def _policy(self) -> Any:  # noqa: ANN401 - a word, a policy, or policies by role
        from attestkit.serve.config.option_values import read_policy  # lazy: loads the server's

        files = self._policy_files()
        if (only := files.get("")) is not None:
            return only if only in _WORDS else read_policy("--policy", only)
        return {role: read_policy("--policy", name) for role, name in files.items()}

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
        anchor = read_option_file("--trust-anchor", self.trust_anchor, parse_anchor)
        certificates = read_option_files("--certificate", self.certificates, parse_certificate)
        more = {"trust_anchor": anchor, "snp_certificates": certificates}
        return found | {name: value for name, value in more.items() if value}


@contextlib.contextmanager
def http_errors(endpoint: "Endpoint") -> Iterator[None]:
    """Context manager: raise errors of the HTTP library as errors of attestkit.

    `endpoint` is the server, which errors name.

    Raises:
        UsageError: If a request cannot be sent as it is.
        ServiceError: If the connection failed.
    """
    from attestkit.client.wire.http_libraries import choose_library, load_library  # lazy: loaded

    httpx = load_library(choose_library(None)).httpx
    problem = "the request cannot be sent"
    try:
        yield
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError) as error:
        message = f"{problem}: {one_line(str(error), 100)}"
        raise UsageError(message, reason="wrong_value") from error
    except httpx.TimeoutException as error:
        message = f"{endpoint.origin}: no connection within {endpoint.timeout:g} s"
        raise ServiceError(message, reason="timeout") from error
    except httpx.HTTPError as error:
        text = one_line(str(error) or type(error).__name__, 100)
        message = f"{endpoint.origin}: the connection failed: {text}"
        raise ServiceError(message, reason="connection") from error


def header_files(texts: Iterable[str]) -> list[Path]:
    """Return the files among headers given as `NAME: VALUE` or `@FILE`."""
    return [Path(text[1:]) for text in texts if text.startswith("@")]


def read_headers(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return names and values of headers given as `NAME: VALUE`, or as `@FILE` with such lines.

    Errors name `option`, such as `-H`.

    Raises:
        UsageError: If a header is malformed, or a file cannot be read; the text omits the value.
    """
    found = []
    for text in texts:
        lines = _header_lines(option, Path(text[1:])) if text.startswith("@") else [text]
        for line in lines:
            name, colon, value = line.partition(":")
            if not (colon and TOKEN.fullmatch(name.strip()) and _VALUE.fullmatch(value.strip())):
                message = f"{option}: must be NAME: VALUE, ASCII in one line"
                raise UsageError(message, reason="wrong_value")
            found.append((name.strip(), value.strip()))
    return found


def _header_lines(option: str, path: Path) -> list[str]:
    try:
        text = read_at_file(option, str(path), _MAX_HEADERS, lambda: path.open("rb")).decode()
    except UnicodeDecodeError as error:
        message = f"{option} @{path}: cannot be read: not UTF-8"
        raise UsageError(message, reason="cannot_read") from error
    return [line for line in text.splitlines() if line.strip()]


def read_at_file(
    option: str, name: str, most: int, opened: Callable[[], AbstractContextManager[IO[bytes]]]
) -> bytes:
    """Return the content of a file that is given as `@FILE`.

    Args:
        option: Name of the option, for errors.
        name: Name of the file, for errors.
        most: Maximum size in bytes.
        opened: Opens the file in binary mode.

    Raises:
        UsageError: If the file cannot be read, or has over `most` bytes.
    """
    try:
        with opened() as file:
            found = file.read(most + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        message = f"{option} @{name}: cannot be read: {problem}"
        raise UsageError(message, reason="cannot_read") from error
    if len(found) > most:
        raise UsageError(f"{option} @{name}: must be at most {most} bytes", reason="too_large")
    return found


def warn_of_weak_policy(proof: "Proof") -> None:
    """Print a warning if the policy accepts any program, or if evidence is simulated."""
    if proof.code == "nobody":
        print_error("warning: any program on sound hardware was accepted (hardware-only)")
    if proof.simulated:
        print_error("warning: the evidence is simulated, and protects nothing")


def _authorities(data: bytes) -> bytes:
    """Check `data`, CA certificates in PEM, and return it unchanged.

    Raises:
        FormatError: If it is over 1 MiB, or not valid.
    """
    from attestkit.client.wire.tls import tls_context  # lazy: loads X.509

    if len(data) > _MAX_CA:
        raise FormatError(f"must be at most {_MAX_CA} bytes", reason="too_large")
    tls_context(data)
    return data


connection_options: Final = option.group(
    "connection",
    (
        option.value(
            "--policy",
            "[ROLE=]FILE",
            "Policy; or hardware-only, or first-use.",
            many=True,
            parameter="policies",
            required=True,
        ),
        option.value(
            "--service", "NAME", "Kind of service, as near-ai; else found.", default="auto"
        ),
        option.value("--model", "NAME", "Model, for services that have several."),
        option.flag("--encrypt", text="Seal requests to a key of the evidence."),
        option.value(
            "--evidence-header",
            "HEADER",
            "NAME: VALUE or @FILE, for an API key.",
            many=True,
        ),
        option.value(
            "--allow-open",
            "FIELD",
            "Field left unsealed with --encrypt.",
            many=True,
            parameter="allow_open",
        ),
        *option.section(
            "Required proof",
            click.option(
                "--freshness",
                metavar="KIND",
                type=click.Choice(("nonce", "key possession", "none")),
                default="nonce",
                help="nonce (default), 'key possession' or none.",
            ),
            click.option(
                "--channel",
                metavar="END",
                type=click.Choice(("model", "gateway", "any")),
                default="model",
                help="Where TLS ends: model (default), gateway, any.",
            ),
            option.flag("--gpu", text="Require and verify the evidence of GPUs."),
            option.file("--pins", "File of --policy first-use."),
            option.value(
                "--max-age",
                "SECONDS",
                "For a new proof. Default: 3600.",
                type=FiniteRange(1, 86400),
                default=3600,
            ),
        ),
        *option.section(
            "Connection",
            option.file("--server-ca", "CA certificates in PEM; else the system's."),
            option.value("--proxy", "URL", "HTTP proxy that makes a tunnel (CONNECT)."),
            option.value(
                "--timeout",
                "SECONDS",
                "For a connection. Default: 10.",
                type=FiniteRange(0.1, 600),
                default=10,
            ),
        ),
        *option.section(
            "Endorsements",
            option.file("--collateral", "Collateral of Intel: JSON, or a CMW with it."),
            option.value("--pccs", "URL", "PCCS to fetch it from; else from Intel."),
            option.flag("--offline", text="Fetch no collateral."),
            option.file("--certificate", "VCEK or VLEK of AMD and its issuer.", many=True),
            option.file("--trust-anchor", "Root, or JSON of simulated ones; not the vendors'."),
        ),
    ),
    ConnectionOptions,
)
