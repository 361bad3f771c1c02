"""Run the tests on every Python from 3.11 that is found: on the PATH, and where pyenv and uv keep theirs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST = (3, 11)
PLACES = [
    *(Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place),
    *sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/*/bin")),
    *sorted(Path("~/.local/share/uv/python").expanduser().glob("*/bin")),
]


def version(python: Path) -> tuple[int, int] | None:
    """Ask an interpreter for its version; None when it does not run, as a shim without a version behind it."""
    asked = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    numbers = asked.stdout.split()
    return (int(numbers[0]), int(numbers[1])) if asked.returncode == 0 and len(numbers) == 2 else None


def found() -> dict[tuple[int, int], Path]:
    """Return the first interpreter of each version, oldest version first."""
    pythons: dict[tuple[int, int], Path] = {}
    for place in PLACES:
        for python in sorted(place.glob("python3.*")):
            if re.fullmatch(r"python3\.\d+", python.name) and (number := version(python)) and number >= OLDEST:
                pythons.setdefault(number, python)
    return dict(sorted(pythons.items()))


def run(number: tuple[int, int], python: Path) -> bool:
    """Make the version's environment from the lock and run the tests in it; return whether they passed."""
    name = ".".join(map(str, number))
    env = ROOT / f".venv-{name}"
    uv = ROOT / ".tools/bin/uv"
    print(f"Python {name} ({python})", flush=True)
    lock = ["--require-hashes", "-r", ROOT / "requirements-dev.lock"]
    editable = ["--no-deps", "--no-build-isolation", "--editable", ROOT]
    install = [uv, "pip", "install", "--quiet", "--python", env / "bin/python"]
    steps = [
        [uv, "venv", "--quiet", "--clear", "--python", python, env],
        [*install, *lock],
        [*install, *editable],
        [env / "bin/python", "-m", "pytest", "-q", "-n", "auto"],
    ]
    return all(subprocess.run(step, cwd=ROOT, check=False).returncode == 0 for step in steps)


def main() -> int:
    """Run all of them, also after one failed; return the exit code."""
    results = {number: run(number, python) for number, python in found().items()}
    for (major, minor), passed in results.items():
        print(f"Python {major}.{minor}: {'passed' if passed else 'FAILED'}")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
