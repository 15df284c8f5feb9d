"""Every target by its name, and which parser each is for."""

from typing import Final

from fuzz import (
    parser_certificates,
    parser_collateral,
    parser_documents,
    parser_evidence,
    parser_logs,
    parser_reports,
    parser_server,
    parser_settings,
)
from fuzz.parser_contract import ParserTarget

__all__ = ["TARGETS", "ParserTarget"]

_FILES: Final = (
    parser_reports,
    parser_logs,
    parser_evidence,
    parser_documents,
    parser_certificates,
    parser_collateral,
    parser_settings,
    parser_server,
)

TARGETS: Final[dict[str, ParserTarget]] = {
    target.name: target for file in _FILES for target in file.targets()
}
