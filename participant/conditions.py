"""Conditions under which this machine may train: probes of the machine, and a function that combines their answers.

A probe returns None if its condition holds, else a text that says what does not hold. The text goes into the decline.

idle        less than `MAX_BUSY` of the processors was used since the probe was last asked
charging    the power cable is plugged in, or there is no battery
unmetered   NetworkManager does not call the connection metered. If NetworkManager is missing or does not know, the
            connection counts as unmetered: most machines without NetworkManager are servers
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import psutil

Probe = Callable[[], str | None]
UserCondition = Callable[[], bool]

MAX_BUSY = 0.5
NMCLI_TIMEOUT_S = 2.0


def first_unmet(probes: Iterable[Probe]) -> str | None:
    """Return the text of the first probe that does not hold; None if all hold. A probe that raises does not hold."""
    for probe in probes:
        try:
            unmet = probe()
        except Exception as error:  # noqa: BLE001  a user's code may fail, and not to train is safe
            unmet = f"a condition could not be checked: {type(error).__name__}: {error}"
        if unmet is not None:
            return unmet
    return None


def checker(names: Iterable[str], user_condition: UserCondition | None = None) -> Probe | None:
    """Return one probe for the named conditions and the user's own; None if there is nothing to check."""
    probes = [_PROBES[name]() for name in names]
    if user_condition is not None:
        probes.append(lambda: None if user_condition() else "the app's conditions() says no")
    return (lambda: first_unmet(probes)) if probes else None


def not_idle(busy_fraction: float, limit: float = MAX_BUSY) -> str | None:
    """Check the fraction of the processors in use, from 0 to 1."""
    return (
        None if busy_fraction < limit else f"not idle: {busy_fraction:.0%} of the processors in use, limit {limit:.0%}"
    )


def not_charging(battery: Any) -> str | None:
    """Check the answer of psutil.sensors_battery(). None means no battery; power_plugged None means that psutil cannot
    tell."""
    if battery is None or battery.power_plugged is not False:
        return None
    return f"not charging: on battery, {battery.percent:.0f} % left"


def metered(nmcli_output: str) -> str | None:
    """Check the output of `nmcli -t -f GENERAL.METERED device show`, a line like "GENERAL.METERED:yes" per device."""
    for line in nmcli_output.splitlines():
        value = line.rpartition(":")[2].strip()
        if value.startswith("yes"):
            return "metered: NetworkManager calls the connection metered"
    return None


def _idle_probe() -> Probe:
    psutil.cpu_percent()  # the first call only sets the start of the measured time

    def probe() -> str | None:
        return not_idle(psutil.cpu_percent() / 100)

    return probe


def _charging_probe() -> Probe:
    # psutil has no sensors_battery on a platform without one.
    read = getattr(psutil, "sensors_battery", lambda: None)
    return lambda: not_charging(read())


def _unmetered_probe() -> Probe:
    nmcli = shutil.which("nmcli")

    def probe() -> str | None:
        if nmcli is None:
            return None
        try:
            asked = subprocess.run(  # noqa: S603  a fixed command, found on PATH
                [nmcli, "-t", "-f", "GENERAL.METERED", "device", "show"],
                capture_output=True,
                text=True,
                timeout=NMCLI_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return metered(asked.stdout) if asked.returncode == 0 else None

    return probe


_PROBES: dict[str, Callable[[], Probe]] = {
    "idle": _idle_probe,
    "charging": _charging_probe,
    "unmetered": _unmetered_probe,
}
