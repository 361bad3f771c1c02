"""Fuzz one target with atheris, guided by coverage: `python -m tests.fuzz.drive TARGET SECONDS [FOLDER]`.

FOLDER keeps what the fuzzer learned, for the next run; without it every run starts from the seeds. An input that breaks
a promise is printed as bytes: add it to the target's FOUND, where it becomes a test.
"""

import hashlib
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_INPUT_BYTES = 16_384
MAX_RSS_MIB = 1024


def main(target_name: str, seconds: str, folder: str | None = None) -> None:
    """Run until the time is over or an input fails; the process ends here, with code 0 when none did."""
    # Not an import: atheris is not among the packages of development, and has no types.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["protocol", "plugin", "tests.fuzz"]):
        target: Any = importlib.import_module(f"tests.fuzz.{target_name}")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(folder or scratch) / target_name
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in (*target.SEEDS, *target.FOUND):
            (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
        words = Path(scratch) / "words"
        words.write_text("".join(f'"{escaped(word)}"\n' for word in target.WORDS), encoding="ascii")
        options = {
            "max_total_time": seconds,
            "max_len": MAX_INPUT_BYTES,
            "rss_limit_mb": MAX_RSS_MIB,
            "timeout": 10,  # seconds for one input
            "dict": words,
            "artifact_prefix": f"{tempfile.gettempdir()}/fuzz-{target_name}-",
            "print_final_stats": 1,
        }
        flags = [f"-{name}={value}" for name, value in options.items()]

        def one_input(data: bytes) -> None:
            try:
                target.one_input(data)
            except BaseException:
                sys.stderr.write(f"{target_name}: add this to FOUND: {data!r}\n")
                raise

        atheris.Setup([sys.argv[0], *flags, str(corpus)], one_input)
        atheris.Fuzz()


def escaped(word: bytes) -> str:
    """Write a word as the fuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(*sys.argv[1:])
