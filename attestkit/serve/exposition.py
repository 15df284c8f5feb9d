"""Prometheus text format of an agent's or a verifier's metrics."""

from typing import TYPE_CHECKING

from attestkit._native import CORE
from attestkit._package import own_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric


def build_info(description: str, **labels: str) -> "Metric":
    """Return the metric family attestkit_build_info: its value is 1, its labels are constant.

    The labels are the program's version, the native core and `labels`.
    """
    from prometheus_client.core import GaugeMetricFamily

    labels = {"version": own_version(), "core": CORE, **labels}
    build = GaugeMetricFamily("attestkit_build_info", description, labels=tuple(labels))
    build.add_metric(tuple(labels.values()), 1)
    return build


def encode_metrics(families: "Iterable[Metric]") -> bytes:
    """Return `families`, and metrics of this process, in the Prometheus text format."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> "Iterable[Metric]":
            return families

    registry = CollectorRegistry()  # the global one belongs to the whole program
    registry.register(Families())
    ProcessCollector(registry=registry)
    return generate_latest(registry)
