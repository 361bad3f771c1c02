"""Show that tests guard what they say: `python tests/guards/remove.py [WORD ...]` removes each guard and wants red.

Every `[[guard]]` of the TOML files beside this one names a piece of the product and the tests that need it. Each is
removed in a copy of the tree, and the tests are run there: they must pass before, and fail after. Words choose guards
whose name, file or tests contain one of them. The exit code is 0 only when every test failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MOST_S = 240.0
ALL_S = 1800.0
# What fails is not made small first, and what is random is the same each time.
QUICKLY = ("-p", "no:cacheprovider", "--no-header", "-p", "tests.guards.hypotheses", "--hypothesis-profile", "guards")
FAILED = 1  # pytest's exit code for failed tests; errors of usage or collection have others


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A piece of the product, what it is replaced by to remove it, and the tests that must see it go."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def removed(self, text: str) -> str:
        """Return the file's text without the guard; ValueError unless it is there exactly once."""
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its piece of {self.file} is there {times} times")
        return text.replace(self.old, self.new)


def guards() -> list[Guard]:
    """Read all guards, in the order of the files and of the lines in them."""
    return [
        Guard(name=one["name"], file=one["file"], old=one["old"], new=one["new"], tests=tuple(one["tests"]))
        for path in sorted(HERE.glob("*.toml"))
        for one in tomllib.loads(path.read_text())["guard"]
    ]


def main() -> int:
    """Remove each guard in turn and say what the tests made of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only guards with one of these words")
    options = parser.parse_args()
    chosen = [one for one in guards() if not options.words or any(word in repr(one) for word in options.words)]
    with tempfile.TemporaryDirectory(prefix="agentic-sync-guards-") as folder:
        tree = _copy(Path(folder) / "tree")
        if code := run(tree, sorted({test for one in chosen for test in one.tests}), ALL_S):
            print("The tests do not pass on the product as it is.")
            return code
        unseen = [one.name for one in chosen if not _is_seen(one, tree)]
    for name in unseen:
        print(f"NOT SEEN: {name}")
    print(f"{len(chosen)} guards removed, {len(chosen) - len(unseen)} missed by every test that needs them.")
    return 1 if unseen else 0


def run(tree: Path, tests: Sequence[str], most_s: float = MOST_S) -> int:
    """Run tests in a tree and return pytest's exit code; tests that go on for ever have failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *QUICKLY, *tests]
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, check=False, timeout=most_s)
    except subprocess.TimeoutExpired:
        return FAILED
    if done.returncode < 0:  # by a signal: the product took the tests down with it
        return FAILED
    if done.returncode not in (0, FAILED):
        sys.stdout.buffer.write(done.stdout + done.stderr)
    return done.returncode


def _copy(tree: Path) -> Path:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S607
    for name in listed.decode().rstrip("\0").split("\0"):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return tree


def _is_seen(one: Guard, tree: Path) -> bool:
    path = tree / one.file
    whole = path.read_text()
    path.write_text(one.removed(whole))
    try:
        seen = True
        for test in one.tests:
            began_at = time.monotonic()
            failed = run(tree, [test]) == FAILED
            seen = seen and failed
            took_s, colour = time.monotonic() - began_at, "red" if failed else "GREEN"
            print(f"{colour:6} {took_s:4.0f} s  {one.name}  ({test.rpartition('::')[2]})", flush=True)
        return seen
    finally:
        path.write_text(whole)


if __name__ == "__main__":
    sys.exit(main())
