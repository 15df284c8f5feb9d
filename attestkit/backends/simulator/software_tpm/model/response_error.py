"""Response codes of a simulated TPM as an internal exception."""

from attestkit.tpm.response_codes import FORMAT_1, PARAMETER, SESSION


class TpmResponseError(Exception):
    """A command failed with a response code; `TpmModel.execute` returns it as a response."""

    def __init__(self, code: int) -> None:
        super().__init__(f"0x{code:03x}")
        self.code = code


def parameter_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a parameter, counted from 1; 0 adds none."""
    if not number or not code & FORMAT_1:
        return TpmResponseError(code)
    return TpmResponseError(code | PARAMETER | number << 8)


def handle_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a handle, counted from 1."""
    return TpmResponseError(code | number << 8)


def session_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a session, counted from 1."""
    return TpmResponseError(code | SESSION | number << 8)
