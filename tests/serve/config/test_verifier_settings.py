"""What the verifier service does follows from its options; none of them means an agent."""

from pathlib import Path

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.command_line import Options
from attestkit.serve.config.option_values import Address, read_policy
from attestkit.serve.config.verifier_settings import VerifierSettings, decide_verifier
from attestkit.verifier.policy.appraisal_policy import PRESETS
from tests.untyped import untyped

WHERE = "127.0.0.1:0"


def alone(environ: dict[str, str] | None = None, **options: str) -> VerifierSettings:
    """Settings of a verifier without an agent."""
    chosen = Options(backend="none", verifier=WHERE, **untyped(options))
    found = decide_verifier(chosen, environ or {})
    assert found is not None
    return found


def with_option(options: Options, name: str) -> Options:
    """Return options with one more."""
    return Options._make({**options._asdict(), name: "x"}.values())


def test_it_is_off_by_default() -> None:
    """Nobody gets a verifier without asking; the environment alone does not ask."""
    assert decide_verifier(Options(), {"PCCS_URL": "http://pccs"}) is None
    assert decide_verifier(Options(backend="simulator", verifier="none"), {}) is None


def test_defaults() -> None:
    """The makers' roots, no policy, and nothing is fetched."""
    found = alone()
    assert found[:-1] == (Address("127.0.0.1", 0), True, *[None] * 8)


def test_beside_an_agent() -> None:
    """Any other backend is an agent's, whose options then are its own."""
    for backend in (None, "auto", "simulator", "configfs_tsm"):
        options = Options(backend=backend, verifier=WHERE, dir="/d", http="none")
        found = decide_verifier(options, {})
        assert found is not None
        assert not found.alone
    assert decide_verifier(Options(verifier=WHERE), {"ATTESTKIT_BACKEND": "none"}) == alone()


def test_it_binds_as_told() -> None:
    """It judges for whoever asks, so any address will do."""
    found = decide_verifier(Options(verifier="0.0.0.0:8080"), {})
    assert found is not None
    assert found.address == Address("0.0.0.0", 8080)


def test_files_are_absolute() -> None:
    """What is named is found from where the server was started."""
    found = alone(trust_anchor="root.pem", verifier_collateral="c.json", verifier_policy="p.toml")
    assert found.trust_anchor == Path("root.pem").absolute()
    assert found.collateral == Path("c.json").absolute()
    assert found.policy == "p.toml"  # or a preset's name


def test_who_is_asked_for_collateral() -> None:
    """The option, else the environment; a file or `none` stands against the latter."""
    environ = {"PCCS_URL": "http://environment"}
    assert alone(environ).pccs_url == "http://environment"
    assert alone({"PCCS_URL": ""}).pccs_url is None
    assert alone(environ, verifier_pccs="http://option").pccs_url == "http://option"
    assert alone(environ, verifier_pccs="none").pccs_url is None
    assert alone(environ, verifier_collateral="c.json").pccs_url is None
    assert alone(environ, verifier_collateral="c.json", verifier_pccs="none").pccs_url is None


def test_two_sources_of_collateral_contradict_each_other() -> None:
    """One is never silently taken in place of the other."""
    with pytest.raises(UsageError, match="--verifier-pccs and --verifier-collateral"):
        alone(verifier_pccs="http://option", verifier_collateral="c.json")


@pytest.mark.parametrize(
    "option", ["verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"]
)
def test_options_of_a_verifier_need_one(option: str) -> None:
    """A verifier that was configured and never started would judge nothing."""
    name = f"--{option.replace('_', '-')}"
    for options in (Options(), Options(backend="simulator", verifier="none")):
        with pytest.raises(UsageError, match=f"{name} is for the verifier service"):
            decide_verifier(with_option(options, option), {})


@pytest.mark.parametrize(
    "option", ["dir", "socket", "http", "dev_http", "app_keys", "app_id", "seed", "state_dir"]
)
def test_options_of_an_agent_need_one(option: str) -> None:
    """Where no agent is served, its options are a mistake; `none` is what they are anyway."""
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is for an agent"):
        alone(None, **{option: "x"})
    assert alone(http="none") == alone()
    with pytest.raises(UsageError, match="--reset is for an agent"):
        decide_verifier(Options(backend="none", verifier=WHERE, reset=True), {})


def test_nothing_at_all() -> None:
    """Neither agent nor verifier is a mistake."""
    with pytest.raises(UsageError, match="needs --verifier"):
        decide_verifier(Options(backend="none"), {})


@pytest.mark.parametrize("text", ["8080", "host", "host:65536"])
def test_wrong_addresses(text: str) -> None:
    """The error names the option."""
    with pytest.raises(UsageError, match="--verifier"):
        decide_verifier(Options(verifier=text), {})


@pytest.mark.parametrize(
    "option", ["verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"]
)
def test_an_empty_value_is_refused(option: str) -> None:
    """An unset variable of a shell is no value."""
    with pytest.raises(UsageError, match="the value is empty"):
        alone(None, **{option: ""})
    with pytest.raises(UsageError, match="--verifier: the value is empty"):
        decide_verifier(Options(verifier=""), {})


def test_a_configuration_is_named() -> None:
    """Where a file gave something, it is what errors speak of."""
    assert alone().names["policy"] == "--verifier-policy"
    options = Options(
        backend="none",
        verifier=WHERE,
        verifier_policy="strict",
        verifier_pccs="u",
        verifier_collateral="c",
        sources={"verifier_policy": "f: p", "verifier_pccs": "f: u"},
    )
    with pytest.raises(ConfigError, match=r"^f: u and --verifier-collateral: one of them"):
        decide_verifier(options, {})
    found = decide_verifier(options._replace(verifier_collateral=None), {})
    assert found is not None
    assert found.names["policy"] == "f: p:"
    assert found.names["pccs_url"] == "f: u:"
    with pytest.raises(ConfigError, match=r"^f: d is for an agent, and with --backend none"):
        decide_verifier(options._replace(dir="d", sources={"dir": "f: d"}), {})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_policy_is_a_preset_or_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has the name of a preset does not take its place; with ./ it is meant."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text('preset = "strict"\nplatforms = ["sgx"]\n')
    assert read_policy("--policy", name) == PRESETS[name]()
    assert read_policy("--policy", f"./{name}").platforms == {"sgx"}


def test_a_policy_that_cannot_be_read(tmp_path: Path) -> None:
    """The text names option and file, and where there is no file the presets too."""
    with pytest.raises(ConfigError, match=r"^--x nosuch: .*strict, default, development$"):
        read_policy("--x", "nosuch")
    with pytest.raises(ConfigError, match=r"^--x .*: Is a directory$"):
        read_policy("--x", str(tmp_path))
    bad = tmp_path / "bad"
    bad.write_text("colour = 1")
    with pytest.raises(ConfigError, match=r"^--x .*bad: colour: unknown key"):
        read_policy("--x", str(bad))


def test_several_processes() -> None:
    """A number from 1 to 64; one process alone is not the same as one that is started again."""
    assert alone().workers is None
    for text, number in (("1", 1), ("3", 3), ("64", 64)):
        assert alone(workers=text).workers == number
    for text in ("0", "65", "-1", "x", "3.0", "1" * 5000, "\u0663"):
        with pytest.raises(UsageError, match=r"^--workers .*: want a number from 1 to 64$"):
            alone(workers=text)


@pytest.mark.parametrize("backend", [None, "auto", "simulator", "configfs_tsm"])
def test_an_agent_is_one_process(backend: str | None) -> None:
    """It has registers, keys and a device, so whoever asks for several is told why not."""
    options = Options(backend=backend, verifier=WHERE, workers="2")
    with pytest.raises(
        UsageError, match=r"^--workers is for the verifier alone \(--backend none\)"
    ):
        decide_verifier(options, {})
    with pytest.raises(UsageError, match=r"^--workers .* needs --verifier$"):
        decide_verifier(Options(backend=backend, workers="2"), {})
    file = Options(backend=backend, verifier=WHERE, workers="2", sources={"workers": "f: workers"})
    with pytest.raises(ConfigError, match=r"^f: workers is for the verifier alone"):
        decide_verifier(file, {})


def test_the_metrics_have_an_address_of_their_own() -> None:
    """They are off by default, and an agent's are at its external listener."""
    assert alone().metrics is None
    assert alone(verifier_metrics="127.0.0.1:0").metrics == Address("127.0.0.1", 0)
    assert alone(verifier_metrics="none").metrics is None
    options = Options(backend="simulator", verifier=WHERE, verifier_metrics=WHERE)
    with pytest.raises(
        UsageError, match=r"^--verifier-metrics is for the verifier alone .*/metrics"
    ):
        decide_verifier(options, {})
    with pytest.raises(UsageError, match=r"^--verifier-metrics .* needs --verifier$"):
        decide_verifier(Options(verifier_metrics=WHERE), {})


def test_a_cache_needs_what_it_keeps() -> None:
    """It is absolute as all paths are; without a service that is asked it would stay empty."""
    found = alone(verifier_cache="c", verifier_pccs="http://pccs")
    assert found.cache == Path("c").absolute()
    assert alone({"PCCS_URL": "http://pccs"}, verifier_cache="c").cache == found.cache
    nothing: dict[str, str] = {}
    for options in (nothing, {"verifier_pccs": "none"}, {"verifier_collateral": "c.json"}):
        with pytest.raises(UsageError, match=r"^--verifier-cache keeps what is fetched"):
            alone(None, verifier_cache="c", **options)
