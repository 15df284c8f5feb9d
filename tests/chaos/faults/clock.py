"""The wall clock jumps for the server only, by libfaketime."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from attestkit.serve.verifier_service.app import FETCHERS, WORKERS
from tests.chaos.faults.pccs import running_verifier, verify
from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.serve.client import call
from tests.serve.server import environment, running_server

_LIBRARIES: Final = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
_JUMPS: Final = {
    "an hour on": "+1h",
    "an hour back": "-1h",
    "ten years on, after every certificate": "+10y",
    "ten years back, before every certificate": "-10y",
    "1970": "@1970-01-01 00:00:01",
    "before 1970": "@1960-01-01 00:00:00",
    "after 2038": "@2040-01-01 00:00:00",
    "after 2106": "@2110-01-01 00:00:00",
}


def _missing() -> str:
    return "" if _LIBRARIES else "libfaketime is not here (Debian: apt install faketime)"


class _Clock:
    """The file from which libfaketime reads the time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "time"
        self.set("+0")

    def set(self, text: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{text}\n")
        new.replace(self._file)

    def environment(self) -> dict[str, str]:
        return environment(
            LD_PRELOAD=str(_LIBRARIES[0]),
            FAKETIME_TIMESTAMP_FILE=str(self._file),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
        )


@scenario(
    "clock jumps", "by an hour, by years, before 1970, past 2038 and 2106, and back", _missing
)
def jumps(form: Form) -> dict[str, Any]:
    """All requests are answered, and timers fire neither early nor late."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        clock = _Clock(Path(name))
        with running_server(environ=clock.environment()) as server, Trial(server) as trial:
            with trial.fault():
                years = {}
                for jump, text in _JUMPS.items():
                    clock.set(text)
                    trial.wait_for_all_since_now(3 if form.full else 1)
                    years[jump] = _certificate_year(server.dstack)
                clock.set("+0")
            trial.notes["certificates_until"] = years
    return trial.result({})


def _certificate_year(place: str) -> str:
    """Return the year in which a newly issued certificate ends, or the error."""
    answer = call(place, "GetTlsKey", {"subject": "x"})
    if answer.status != 200:
        return str(answer.json()["error"])
    first = answer.json()["certificate_chain"][0]
    words = ["openssl", "x509", "-noout", "-enddate"]
    done = subprocess.run(words, input=first, capture_output=True, text=True, check=True)
    return str(done.stdout.split()[-2])


@scenario(
    "clock jumps beside a PCCS",
    "a verifier whose clock leaves the time its collateral is of",
    _missing,
)
def collateral(form: Form) -> dict[str, Any]:
    """Evidence is rejected with stale collateral, and accepted when the clock is correct again."""
    del form
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        clock = _Clock(Path(name))
        with (
            running_server("--pccs-http", "127.0.0.1:0") as agent,
            running_verifier(agent, agent.ready["pccs"], clock.environment()) as server,
            Trial(server, threads=WORKERS + FETCHERS) as trial,
        ):
            evidence = call(agent.dstack, "GetQuote", {"report_data": "77"}).json()
            verdicts = {"at first": verify(server, evidence)}
            with trial.fault():
                for jump in _JUMPS:
                    clock.set(_JUMPS[jump])
                    verdicts[jump] = verify(server, evidence)
                clock.set("+0")
            verdicts["at last"] = verify(server, evidence)
            trial.notes["verdicts"] = verdicts
    assert verdicts["at first"] == verdicts["at last"] == "valid", verdicts
    for jump in (
        "ten years on, after every certificate",
        "ten years back, before every certificate",
    ):
        assert verdicts[jump] != "valid", verdicts
    return trial.result({})
