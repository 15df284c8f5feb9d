"""Settings of the verifier service, decided from options and environment."""

from typing import Any

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings, decide_verifier
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

ADDRESS = "127.0.0.1:0"
ON = Options(verifier=ADDRESS)
ALONE = Options(backend="none", verifier=ADDRESS)


def decide(options: Options, environ: dict[str, str] | None = None) -> VerifierSettings:
    """Return the settings of a verifier that is on."""
    found = decide_verifier(options, environ or {})
    assert found is not None
    return found


def decide_pccs(environ: dict[str, str], **options: str) -> str | None:
    """Return the PCCS of a verifier without an agent."""
    return decide(ALONE._replace(**untyped(options)), environ).pccs_url


def test_decide_verifier_by_default_is_off() -> None:
    """The verifier service is off unless --verifier is given, whatever the environment holds."""
    assert decide_verifier(Options(), {"PCCS_URL": "http://pccs"}) is None
    assert decide_verifier(Options(backend="simulator", verifier="none"), {}) is None


def test_decide_verifier_without_options_uses_defaults() -> None:
    """By default the vendors' roots are trusted, no policy applies and nothing is fetched."""
    assert decide(ALONE)[1:] == (Address("127.0.0.1", 0), True, None, None, None)
    assert decide(ALONE._replace(http="none")).alone
    assert decide(ON._replace(verifier="0.0.0.0:8080")).address == Address("0.0.0.0", 8080)


def test_decide_verifier_with_backend_runs_beside_agent() -> None:
    """With any backend except `none`, the verifier runs beside an agent."""
    for backend in (None, "auto", "simulator", "configfs_tsm"):
        assert not decide(ON._replace(backend=backend, dir="/d", http="none")).alone
    assert decide(ON, {"ATTESTKIT_BACKEND": "none"}).alone


def test_decide_verifier_pccs_precedence() -> None:
    """--verifier-pccs overrides $PCCS_URL; `none` or a collateral file disables the latter."""
    environ = {"PCCS_URL": "http://environment"}
    assert decide_pccs(environ) == "http://environment"
    assert decide_pccs({"PCCS_URL": ""}) is None
    assert decide_pccs(environ, verifier_pccs="http://option") == "http://option"
    assert decide_pccs(environ, verifier_pccs="none") is None
    assert decide_pccs(environ, verifier_collateral="c.json") is None
    assert decide_pccs(environ, verifier_collateral="c.json", verifier_pccs="none") is None
    assert decide_pccs(environ, verifier_cache="c") == "http://environment"


def test_decide_verifier_workers_and_metrics_without_agent() -> None:
    """A verifier without an agent has 1 to 64 workers, and an endpoint of metrics."""
    for text in ("1", "3", "64"):
        assert decide(ALONE._replace(workers=text)).workers == int(text)
    assert decide(ALONE._replace(verifier_metrics=ADDRESS)).metrics == Address("127.0.0.1", 0)
    assert decide(ALONE._replace(verifier_metrics="none")).metrics is None


def given(options: Options, **values: Any) -> Options:
    """Return options with other values."""
    return options._replace(**values)


BOTH = {"verifier_pccs": "u", "verifier_collateral": "c"}
FOR_VERIFIER = (
    *("verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"),
    *("workers", "verifier_metrics", "images"),
)
FOR_AGENT = ("dir", "socket", "http", "dev_http", "app_keys", "app_id", "seed", "state_dir")
MORE: list[dict[str, str]] = [{}, {"verifier_pccs": "none"}, {"verifier_collateral": "c.json"}]
WORKERS = "--workers: must be a number from 1 to 64: "
REFUSED = [
    (Options(backend="none"), "missing", "--backend none: nothing to serve without --verifier"),
    *(
        (given(Options(), **{option: ADDRESS}), "conflict", ": requires the verifier")
        for option in FOR_VERIFIER
    ),
    (
        Options(verifier="none", trust_anchor="x"),
        "conflict",
        "--trust-anchor: requires the verifier",
    ),
    *((given(ALONE, **{option: "x"}), "conflict", ": requires an agent") for option in FOR_AGENT),
    (ALONE._replace(reset=True), "conflict", "--reset: requires an agent"),
    *((Options(verifier=text), "wrong_value", "--verifier: ") for text in ("8080", "h", "h:65536")),
    (given(ALONE, **BOTH), "conflict", "--verifier-pccs: excludes --verifier-collateral; give"),
    *(
        (ALONE._replace(workers=text), "wrong_value", WORKERS)
        for text in ("0", "65", "-1", "x", "3.0", "1" * 5000, "\u0663")
    ),
    *(
        (
            ON._replace(backend=backend, workers="2"),
            "conflict",
            "--workers: requires --backend none",
        )
        for backend in (None, "auto", "simulator", "configfs_tsm")
    ),
    (ON._replace(verifier_metrics=ADDRESS), "conflict", "--verifier-metrics: requires --backend"),
    *(
        (
            given(ALONE, verifier_cache="c", **more),
            "conflict",
            "--verifier-cache: requires --verifier-pccs",
        )
        for more in MORE
    ),
]


@every_case(("options", "reason", "text"), untyped(REFUSED))
def test_decide_verifier_unsuitable_option_is_refused(
    options: Options, reason: str, text: str
) -> None:
    """Options that conflict or are invalid are refused; the error names the option."""
    with raises(UsageError, reason, start="--", part=text):
        decide_verifier(options, {})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (given(ALONE, **BOTH), "f: verifier_pccs: excludes --verifier-collateral;"),
        (ALONE._replace(dir="d"), "f: dir: requires an agent"),
        (ON._replace(workers="2"), "f: workers: requires --backend none; "),
    ],
)
def test_decide_verifier_errors_name_configuration_key(options: Options, text: str) -> None:
    """An error about a value from a file names the file and the key."""
    sources = {name: f"f: {name}" for name in ("verifier_pccs", "dir", "workers")}
    with raises(ConfigError, "conflict", start=text):
        decide_verifier(options._replace(sources=sources), {})
