"""Settings of the verifier service, decided from options and environment."""

from pathlib import Path

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.command_line import Options
from attestkit.serve.config.option_values import Address, read_policy
from attestkit.serve.config.verifier_settings import VerifierSettings, decide_verifier
from attestkit.verifier.policy.appraisal_policy import PRESETS
from tests.raising import raises
from tests.untyped import untyped

ADDRESS = "127.0.0.1:0"


def decide_without_agent(environ: dict[str, str] | None = None, **options: str) -> VerifierSettings:
    """Return the settings of a verifier without an agent."""
    chosen = Options(backend="none", verifier=ADDRESS, **untyped(options))
    found = decide_verifier(chosen, environ or {})
    assert found is not None
    return found


def set_option(options: Options, name: str) -> Options:
    """Return options with the option `name` set."""
    return Options._make({**options._asdict(), name: "x"}.values())


def test_decide_verifier_by_default_is_off() -> None:
    """The verifier service is off unless --verifier is given, whatever the environment holds."""
    assert decide_verifier(Options(), {"PCCS_URL": "http://pccs"}) is None
    assert decide_verifier(Options(backend="simulator", verifier="none"), {}) is None


def test_decide_verifier_without_options_uses_defaults() -> None:
    """By default the vendors' roots are trusted, no policy applies and nothing is fetched."""
    found = decide_without_agent()
    assert found[:-1] == (Address("127.0.0.1", 0), True, *[None] * 8)


def test_decide_verifier_with_backend_runs_beside_agent() -> None:
    """With any backend except `none`, the verifier runs beside an agent."""
    for backend in (None, "auto", "simulator", "configfs_tsm"):
        options = Options(backend=backend, verifier=ADDRESS, dir="/d", http="none")
        found = decide_verifier(options, {})
        assert found is not None
        assert not found.alone
    assert (
        decide_verifier(Options(verifier=ADDRESS), {"ATTESTKIT_BACKEND": "none"})
        == decide_without_agent()
    )


def test_decide_verifier_any_host_is_accepted() -> None:
    """The verifier may listen on a non-loopback address."""
    found = decide_verifier(Options(verifier="0.0.0.0:8080"), {})
    assert found is not None
    assert found.address == Address("0.0.0.0", 8080)


def test_decide_verifier_relative_paths_become_absolute() -> None:
    """Relative paths are resolved against the working directory at startup."""
    found = decide_without_agent(
        trust_anchor="root.pem", verifier_collateral="c.json", verifier_policy="p.toml"
    )
    assert found.trust_anchor == Path("root.pem").absolute()
    assert found.collateral == Path("c.json").absolute()
    assert found.policy == "p.toml"  # a path or the name of a preset


def test_decide_verifier_pccs_precedence() -> None:
    """--verifier-pccs overrides $PCCS_URL; `none` or a collateral file disables the latter."""
    environ = {"PCCS_URL": "http://environment"}
    assert decide_without_agent(environ).pccs_url == "http://environment"
    assert decide_without_agent({"PCCS_URL": ""}).pccs_url is None
    assert decide_without_agent(environ, verifier_pccs="http://option").pccs_url == "http://option"
    assert decide_without_agent(environ, verifier_pccs="none").pccs_url is None
    assert decide_without_agent(environ, verifier_collateral="c.json").pccs_url is None
    assert (
        decide_without_agent(environ, verifier_collateral="c.json", verifier_pccs="none").pccs_url
        is None
    )


def test_decide_verifier_pccs_and_collateral_file_conflict() -> None:
    """--verifier-pccs and --verifier-collateral are mutually exclusive."""
    with raises(UsageError, "conflict") as caught:
        decide_without_agent(verifier_pccs="http://option", verifier_collateral="c.json")
    assert str(caught.value) == (
        "--verifier-pccs: excludes --verifier-collateral; give one of them"
    )


@pytest.mark.parametrize(
    "option", ["verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"]
)
def test_decide_verifier_option_without_service_conflicts(option: str) -> None:
    """Options of the verifier service require --verifier."""
    name = f"--{option.replace('_', '-')}"
    for options in (Options(), Options(backend="simulator", verifier="none")):
        with raises(UsageError, "conflict") as caught:
            decide_verifier(set_option(options, option), {})
        assert str(caught.value) == f"{name}: for the verifier service; give --verifier too"


@pytest.mark.parametrize(
    "option", ["dir", "socket", "http", "dev_http", "app_keys", "app_id", "seed", "state_dir"]
)
def test_decide_verifier_agent_option_without_agent_conflicts(option: str) -> None:
    """Options of the agent are refused with --backend none, except for `--http none`."""
    with raises(UsageError, "conflict") as caught:
        decide_without_agent(None, **{option: "x"})
    assert str(caught.value).startswith(f"--{option.replace('_', '-')}: for an agent")
    assert decide_without_agent(http="none") == decide_without_agent()
    with raises(UsageError, "conflict") as caught:
        decide_verifier(Options(backend="none", verifier=ADDRESS, reset=True), {})
    assert str(caught.value).startswith("--reset: for an agent")


def test_decide_verifier_without_agent_or_service_fails() -> None:
    """--backend none requires --verifier."""
    with raises(UsageError, "missing") as caught:
        decide_verifier(Options(backend="none"), {})
    assert "--verifier HOST:PORT" in str(caught.value)


@pytest.mark.parametrize("text", ["8080", "host", "host:65536"])
def test_decide_verifier_malformed_address_is_refused(text: str) -> None:
    """An error about the address names --verifier."""
    with raises(UsageError, "wrong_value") as caught:
        decide_verifier(Options(verifier=text), {})
    assert str(caught.value).startswith("--verifier: ")


@pytest.mark.parametrize(
    "option", ["verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"]
)
def test_decide_verifier_empty_value_is_refused(option: str) -> None:
    """An empty value, such as an unset shell variable, is refused."""
    with raises(UsageError, "missing"):
        decide_without_agent(None, **{option: ""})
    with raises(UsageError, "missing") as caught:
        decide_verifier(Options(verifier=""), {})
    assert str(caught.value).startswith("--verifier: ")


def test_decide_verifier_errors_name_configuration_key() -> None:
    """An error about a value from a file names the file and the key."""
    assert decide_without_agent().names["policy"] == "--verifier-policy"
    options = Options(
        backend="none",
        verifier=ADDRESS,
        verifier_policy="strict",
        verifier_pccs="u",
        verifier_collateral="c",
        sources={"verifier_policy": "f: p", "verifier_pccs": "f: u"},
    )
    with raises(ConfigError, "conflict") as caught:
        decide_verifier(options, {})
    assert str(caught.value).startswith("f: u: excludes --verifier-collateral;")
    found = decide_verifier(options._replace(verifier_collateral=None), {})
    assert found is not None
    assert found.names["policy"] == "f: p:"
    assert found.names["pccs_url"] == "f: u:"
    with raises(ConfigError, "conflict") as caught:
        decide_verifier(options._replace(dir="d", sources={"dir": "f: d"}), {})
    assert str(caught.value).startswith("f: d: for an agent")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_read_policy_preset_name_precedes_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset's name selects the preset, not a file of that name; ./NAME selects the file."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text('preset = "strict"\nplatforms = ["sgx"]\n')
    assert read_policy("--policy", name) == PRESETS[name]()
    assert read_policy("--policy", f"./{name}").platforms == {"sgx"}


def test_read_policy_unreadable_file_names_option_and_path(tmp_path: Path) -> None:
    """Errors name the option and the file; a missing file also lists the presets."""
    with raises(ConfigError, "unreadable") as caught:
        read_policy("--x", "nosuch")
    assert str(caught.value).startswith("--x nosuch: ")
    assert str(caught.value).endswith("; the presets are strict, default, development")
    with raises(ConfigError, "unreadable") as caught:
        read_policy("--x", str(tmp_path))
    assert str(caught.value).startswith(f"--x {tmp_path}: ")
    bad = tmp_path / "bad"
    bad.write_text("colour = 1")
    with raises(ConfigError, "unknown_key") as caught:
        read_policy("--x", str(bad))
    assert str(caught.value).startswith(f"--x {bad}: colour: ")


def test_decide_verifier_workers_accepts_1_to_64() -> None:
    """--workers is unset or 1 to 64."""
    assert decide_without_agent().workers is None
    for text, number in (("1", 1), ("3", 3), ("64", 64)):
        assert decide_without_agent(workers=text).workers == number
    for text in ("0", "65", "-1", "x", "3.0", "1" * 5000, "\u0663"):
        with raises(UsageError, "wrong_value") as caught:
            decide_without_agent(workers=text)
        assert str(caught.value).startswith("--workers: must be a number from 1 to 64: ")


@pytest.mark.parametrize("backend", [None, "auto", "simulator", "configfs_tsm"])
def test_decide_verifier_workers_with_agent_conflict(backend: str | None) -> None:
    """--workers requires --backend none, because an agent is a single process."""
    options = Options(backend=backend, verifier=ADDRESS, workers="2")
    with raises(UsageError, "conflict") as caught:
        decide_verifier(options, {})
    assert str(caught.value).startswith("--workers: only with --backend none; ")
    with raises(UsageError, "conflict") as caught:
        decide_verifier(Options(backend=backend, workers="2"), {})
    assert str(caught.value).startswith("--workers: for the verifier service; ")
    file = Options(
        backend=backend, verifier=ADDRESS, workers="2", sources={"workers": "f: workers"}
    )
    with raises(ConfigError, "conflict") as in_file:
        decide_verifier(file, {})
    assert str(in_file.value).startswith("f: workers: only with --backend none; ")


def test_decide_verifier_metrics_require_service_without_agent() -> None:
    """--verifier-metrics is off by default and requires --backend none."""
    assert decide_without_agent().metrics is None
    assert decide_without_agent(verifier_metrics="127.0.0.1:0").metrics == Address("127.0.0.1", 0)
    assert decide_without_agent(verifier_metrics="none").metrics is None
    options = Options(backend="simulator", verifier=ADDRESS, verifier_metrics=ADDRESS)
    with raises(UsageError, "conflict") as caught:
        decide_verifier(options, {})
    assert str(caught.value).startswith("--verifier-metrics: only with --backend none; ")
    assert "/metrics" in str(caught.value)
    with raises(UsageError, "conflict") as caught:
        decide_verifier(Options(verifier_metrics=ADDRESS), {})
    assert str(caught.value).startswith("--verifier-metrics: for the verifier service; ")


def test_decide_verifier_cache_requires_pccs() -> None:
    """--verifier-cache becomes absolute and requires a PCCS."""
    found = decide_without_agent(verifier_cache="c", verifier_pccs="http://pccs")
    assert found.cache == Path("c").absolute()
    assert (
        decide_without_agent({"PCCS_URL": "http://pccs"}, verifier_cache="c").cache == found.cache
    )
    nothing: dict[str, str] = {}
    for options in (nothing, {"verifier_pccs": "none"}, {"verifier_collateral": "c.json"}):
        with raises(UsageError, "conflict") as caught:
            decide_without_agent(None, verifier_cache="c", **options)
        assert str(caught.value).startswith("--verifier-cache: nothing is fetched without")
