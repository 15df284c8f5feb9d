"""Decisions of auth-simple files, byte for byte as upstream's server."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import ConfigError
from attestkit.kms.release.auth_simple import (
    MAX_APPS,
    MAX_FILE_SIZE,
    AuthSimpleConfig,
    AuthSimpleFile,
)
from attestkit.verifier import TcbStatus
from tests.kms.release.boot_infos import APP, boot_info, from_fields
from tests.kms.release.kms_vectors import row_id, rows
from tests.runner.cases import every_case
from tests.vectors import needs_shared

HASHES = {"compose": "dd" * 32, "image": "bb" * 32, "device": "ee" * 32, "kms": "aa" * 32}
CONFIG: dict[str, Any] = {
    "gatewayAppId": "0xgw",
    "osImages": [HASHES["image"]],
    "kms": {"mrAggregated": [HASHES["kms"]], "devices": [HASHES["device"]]},
    "apps": {f"0x{APP.hex()}": {"composeHashes": [HASHES["compose"]], "allowAnyDevice": True}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file that allows the app and the KMS."""
    path = tmp_path / "auth-config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@needs_shared
@pytest.mark.parametrize("row", rows("auth_simple"), ids=row_id)
def test_decision_matches_vector(row: dict[str, Any], tmp_path: Path) -> None:
    """The response is upstream's byte for byte; a missing file allows nothing."""
    path = tmp_path / "auth-config.json"
    if row["config"] is not None:
        path.write_text(json.dumps(row["config"]))
    found = AuthSimpleFile(path).decide(row["kind"], from_fields(row["boot_info"]))
    assert found.to_json() == row["response"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"osImages":"x"}', '{"chainId":-1}', f'{{"chainId":{1 << 64}}}', "\xff"],
)
def test_malformed_file_allows_nothing(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A malformed file is like a missing one, with a warning that is not repeated."""
    file.write_text(content, encoding="latin-1")
    with caplog.at_level(logging.WARNING, "attestkit.kms"):
        authorization = AuthSimpleFile(file)
        found = authorization.decide("app", boot_info())
    assert not found.is_allowed
    assert found.reason == "OS image is not allowed"
    assert not authorization.releases_roots
    assert sum("nothing is allowed" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"allowedTcbStatus": []}, "allowedTcbStatus"),
        ({"kms": {"mrAggregate": []}}, "mrAggregate"),
        ({"apps": {"00": {"composeHash": []}}}, "composeHash"),
    ],
)
def test_unknown_key_is_an_error(file: Path, changes: dict[str, Any], key: str) -> None:
    """A misspelt key is refused at start and at each request; the error names it."""
    authorization = AuthSimpleFile(file)
    file.write_text(json.dumps({**CONFIG, **changes}))
    for use in (lambda: authorization.decide("app", boot_info()), lambda: AuthSimpleFile(file)):
        with pytest.raises(ConfigError) as caught:
            use()
        assert caught.value.reason == "unknown_key"
        assert key in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"apps":{"00":{},"00":{}}}',
        '{"apps":{"00":{},"0x00":{}}}',
        '{"apps":{"AB":{},"ab":{}}}',
        '{"osImages":[],"osImages":[]}',
    ],
)
def test_duplicate_key_is_an_error(file: Path, text: str) -> None:
    """A member that occurs twice is refused."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        AuthSimpleFile(file)
    assert caught.value.reason == "duplicate"


def test_file_is_read_at_each_request(file: Path) -> None:
    """An added compose hash is allowed at once, a removed one refused."""
    authorization = AuthSimpleFile(file)
    upgraded = boot_info(compose_hash=b"\xd0" * 32)
    assert authorization.decide("app", boot_info()).is_allowed
    assert authorization.decide("app", upgraded).reason == "compose hash not allowed"
    app = {"composeHashes": ["0x" + "D0" * 32], "allowAnyDevice": True}
    file.write_text(json.dumps({**CONFIG, "apps": {APP.hex(): app}}))
    assert authorization.decide("app", upgraded).is_allowed
    assert authorization.decide("app", boot_info()).reason == "compose hash not allowed"


def test_empty_list_of_devices_warns(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The trap: without devices any device is allowed; loading such a file warns once."""
    app = {"composeHashes": [HASHES["compose"]]}
    file.write_text(json.dumps({**CONFIG, "apps": {APP.hex(): app}, "kms": {}}))
    with caplog.at_level(logging.WARNING, "attestkit.kms"):
        authorization = AuthSimpleFile(file)
        assert authorization.decide("app", boot_info(device_id=bytes(32))).is_allowed
    warnings = [line for line in caplog.messages if "empty list of devices" in line]
    assert len(warnings) == 1
    assert f"apps.{APP.hex()}" in warnings[0]
    assert "kms" not in warnings[0].partition("json: ")[2]


def test_listed_devices_do_not_warn(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """allowAnyDevice, or a list, says what is meant."""
    with caplog.at_level(logging.WARNING, "attestkit.kms"):
        AuthSimpleFile(file)
    assert not caplog.messages


def test_empty_values_are_never_allowed() -> None:
    """An image that could not be verified has no hash, which no entry of a list allows."""
    config = AuthSimpleConfig.from_json(json.dumps({**CONFIG, "osImages": ["", "0x"]}))
    assert config.decide("app", boot_info(os_image_hash=b"")).reason == "OS image is not allowed"


def test_description_has_defaults(file: Path) -> None:
    """GetMeta reports the file's values, and upstream's defaults."""
    found = AuthSimpleFile(file).describe()
    assert found.gateway_app_id == "0xgw"
    assert found.kms_contract_address == "0x" + "0" * 40
    assert found.app_auth_implementation == "0x" + "0" * 40
    assert (found.chain_id, found.is_dev) == (0, False)


def test_roots_are_released_only_with_measurements(file: Path) -> None:
    """GetKmsKey needs kms.mrAggregated."""
    authorization = AuthSimpleFile(file)
    assert authorization.releases_roots
    assert authorization.decide("kms", boot_info()).is_allowed
    file.write_text(json.dumps({**CONFIG, "kms": {}}))
    assert not authorization.releases_roots


def test_limits_of_a_file() -> None:
    """Size and number of apps are limited."""
    with pytest.raises(ConfigError) as caught:
        AuthSimpleConfig.from_json(b" " * (MAX_FILE_SIZE + 1))
    assert caught.value.reason == "too_large"
    many: dict[str, Any] = {"apps": {f"{number:040x}": {} for number in range(MAX_APPS + 1)}}
    with pytest.raises(ConfigError) as caught:
        AuthSimpleConfig.from_json(json.dumps(many))
    assert caught.value.reason == "too_many"


def test_every_prefix_of_a_file_is_refused() -> None:
    """A truncated file is malformed."""
    text = json.dumps(CONFIG)
    for size in range(len(text)):
        with pytest.raises(ConfigError):
            AuthSimpleConfig.from_json(text[:size])


@given(st.text(max_size=64) | st.binary(max_size=64))
def test_any_text_raises_only_config_errors(text: str | bytes) -> None:
    """Any input is parsed, or refused with a ConfigError."""
    with contextlib.suppress(ConfigError):
        AuthSimpleConfig.from_json(text)


# -- as a policy -----------------------------------------------------------------------------------


def test_app_policy_has_the_rules_of_the_file() -> None:
    """Each rule of the file has its rule of AppraisalPolicy."""
    app = {"composeHashes": ["0x" + HASHES["compose"]], "devices": [HASHES["device"].upper()]}
    config = {**CONFIG, "apps": {APP.hex(): app}, "allowedAdvisoryIds": ["INTEL-SA-1"]}
    policy = AuthSimpleConfig.from_json(json.dumps(config)).app_policy(APP)
    assert policy.accepted_statuses == {TcbStatus.UP_TO_DATE}
    assert policy.accepted_advisories == {"INTEL-SA-1"}
    assert policy.os_image_hash == {bytes.fromhex(HASHES["image"])}
    assert policy.app_id == {APP}
    assert policy.compose_hash == {bytes.fromhex(HASHES["compose"])}
    assert policy.device_id == {bytes.fromhex(HASHES["device"])}


def test_kms_policy_has_the_rules_of_the_file() -> None:
    """Measurements of a KMS become mr_aggregated; any device is no rule."""
    policy = AuthSimpleConfig.from_json(json.dumps(CONFIG)).kms_policy()
    assert policy.mr_aggregated == {bytes.fromhex(HASHES["kms"])}
    assert policy.device_id == {bytes.fromhex(HASHES["device"])}
    assert AuthSimpleConfig.from_json(json.dumps(CONFIG)).app_policy(APP).device_id is None


@every_case(
    ("changes", "reason"),
    [
        ({"allowedTcbStatuses": ["UpToDate", "Fine"]}, "wrong_value"),
        ({"allowedTcbStatuses": []}, "wrong_value"),
        ({"osImages": []}, "missing"),
        ({"osImages": ["xx"]}, "encoding"),
        ({"osImages": ["00"]}, "wrong_value"),
        ({"apps": {}}, "missing"),
        ({"apps": {APP.hex(): {}}}, "missing"),
    ],
)
def test_policy_of_invalid_values_is_refused(changes: dict[str, Any], reason: str) -> None:
    """Unknown statuses, empty lists and values of another size have no policy."""
    config = AuthSimpleConfig.from_json(json.dumps({**CONFIG, **changes}))
    with pytest.raises(ConfigError) as caught:
        config.app_policy(APP)
    assert caught.value.reason == reason
