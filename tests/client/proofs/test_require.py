"""Requirements: each default is the safe one, and a refusal names the keyword to change."""

from typing import Any

from attestkit.client.proofs.appraisal import REQUIRE_ALL, Require
from attestkit.client.services.service import Binding, Claims, Machine
from attestkit.errors import ServiceError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

SERVER = Binding("tls-spki", bytes(32), "server")
GATEWAY = Binding("tls-spki", bytes(32), "gateway")
ROUTER = Binding("hpke", bytes(32), "router")
MODEL = Binding("fields", bytes(32), "model")


def claims(freshness: Any = "nonce", *, gpu: bool = False) -> Claims:
    """Return claims of one machine."""
    machine = Machine("server", b"", bytes(64), gpu=untyped("evidence") if gpu else None)
    return Claims((machine,), (), freshness)


def test_defaults_are_the_safe_ones() -> None:
    """A nonce, and a channel that ends where the program runs."""
    assert Require() == REQUIRE_ALL == Require("nonce", "model", gpu=False)


@every_case("required", ["nonce", "key possession", "none"])
@every_case("shown", ["nonce", "key possession", "none"])
def test_freshness(required: Any, shown: Any) -> None:
    """Claims that show more are accepted; the text names the value that would accept less."""
    order = ["none", "key possession", "nonce"]
    require = Require(freshness=required)
    if order.index(shown) >= order.index(required):
        require.check(claims(shown), [SERVER], "stub")
        return
    with raises(ServiceError, "no_freshness", start="stub", part=f'freshness="{shown}"'):
        require.check(claims(shown), [SERVER], "stub")


@every_case(
    ("bindings", "least", "reason"),
    [
        ([SERVER], "model", ""),
        ([MODEL], "model", ""),
        ([GATEWAY, MODEL], "model", ""),
        ([GATEWAY], "gateway", "ends_at_gateway"),
        ([ROUTER], "gateway", "ends_at_gateway"),
        ([GATEWAY, ROUTER], "gateway", "ends_at_gateway"),
        ([], "any", "no_channel"),
    ],
)
def test_channel(bindings: list[Binding], least: Any, reason: str) -> None:
    """Less than the machine of the program has to be asked for, and the text says how."""
    for channel in ("model", "gateway", "any"):
        require = Require(channel=untyped(channel))
        if ["any", "gateway", "model"].index(channel) <= ["any", "gateway", "model"].index(least):
            require.check(claims(), bindings, "stub")
        else:
            with raises(ServiceError, reason, part=f'channel="{least}"'):
                require.check(claims(), bindings, "stub")


def test_gpu() -> None:
    """Evidence of GPUs must be there if it is required."""
    Require(gpu=True).check(claims(gpu=True), [SERVER], "stub")
    with raises(ServiceError, "no_gpu"):
        Require(gpu=True).check(claims(), [SERVER], "stub")


@every_case(
    ("machines", "is_met"),
    [
        (["model", "model"], False),
        (["model+", "model"], False),
        (["gateway+", "model"], False),
        (["router+", "instance"], False),
        (["gateway", "model+", "model+"], True),
        (["model+", "manager"], True),
        (["gateway+"], True),
        (["gateway"], False),
    ],
)
def test_gpu_of_each_machine(machines: list[str], is_met: bool) -> None:
    """Evidence of one machine's GPUs says nothing of another, to which requests may go."""
    found = tuple(
        [
            Machine(
                text.rstrip("+"),
                b"",
                bytes(64),
                untyped("evidence") if text.endswith("+") else None,
                is_further=text == "manager",
            )
            for text in machines
        ]
    )
    several = Claims(found, (), "nonce")
    if is_met:
        Require(gpu=True).check(several, [SERVER], "stub")
        return
    with raises(ServiceError, "no_gpu"):
        Require(gpu=True).check(several, [SERVER], "stub")


@every_case(
    ("values", "reason"),
    [
        ({"freshness": "now"}, "wrong_value"),
        ({"freshness": None}, "wrong_value"),
        ({"freshness": ["nonce"]}, "wrong_value"),
        ({"channel": "server"}, "wrong_value"),
        ({"channel": 1}, "wrong_value"),
        ({"gpu": 1}, "wrong_type"),
        ({"response_signatures": "yes"}, "wrong_type"),
    ],
)
def test_unknown_values(values: dict[str, Any], reason: str) -> None:
    """A misspelt requirement is not taken for a weak one."""
    with raises(UsageError, reason):
        Require(**values)
