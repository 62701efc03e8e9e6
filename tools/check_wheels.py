"""Check that every package of the base install has a wheel for 64-bit ARM, so that a small device compiles nothing.

    python tools/check_wheels.py [MACHINE]        (without an argument: aarch64)

It asks the package index that pip is configured for, downloads the wheels into a temporary folder, and prints a table.
The exit status is 1 if a wheel is missing. docs/decisions/0029-the-base-install.md has the result of one run.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
"""Oldest systems that a wheel is accepted for: glibc 2.28, as in Debian 10."""
MIB = 1024**2


def download(python: str, machine: str, folder: Path) -> str:
    """Download the wheels of the base install into `folder`. Returns pip's complaint, empty if there is none."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    platforms = [word for glibc in GLIBC for word in ("--platform", f"{glibc}_{machine}")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", python]
    done = subprocess.run(  # noqa: S603 (the arguments are ours)
        [*command, "--implementation", "cp", *platforms, "--dest", str(folder), *dependencies],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""


def main(machine: str = "aarch64") -> int:
    """Print a row for each package: its version, and the size of its wheel in MiB for each Python."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as folder:
            if complaint := download(python, machine, Path(folder)):
                print(f"Python {python}, {machine}: {complaint}", file=sys.stderr)
                return 1
            for wheel in sorted(Path(folder).glob("*.whl")):
                package, version = wheel.name.split("-")[:2]
                found.setdefault((package, version), {})[python] = wheel.stat().st_size / MIB
    print(f"| package | version | {' | '.join(f'Python {python}' for python in PYTHONS)} |\n|---|---|{'--:|' * 3}")
    for (package, version), sizes in sorted(found.items()):
        cells = (f"{sizes[python]:.2f}" if python in sizes else "" for python in PYTHONS)
        print(f"| {package} | {version} | {' | '.join(cells)} |")
    totals = (f"{sum(sizes.get(python, 0) for sizes in found.values()):.1f}" for python in PYTHONS)
    print(f"| together, MiB | | {' | '.join(totals)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
