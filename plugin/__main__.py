"""The command line's first act: when this process is to serve, claim the wire before anything can print on it."""

import gc
import os
import signal
import sys
from types import FrameType

from protocol.claim import claim


def main() -> int:
    """Run the command line; return its exit code."""
    arguments = sys.argv[1:]
    serving = arguments[:1] == ["serve"] or (not arguments and not os.isatty(0))
    wants_help = "-h" in arguments or "--help" in arguments
    wire = claim() if serving and not wants_help else None
    if wire is not None:
        # The imports take a moment, too. Nothing was read yet, so there is nothing to finish.
        signal.signal(signal.SIGTERM, _leave)
        if not os.isatty(wire.read_fd):
            # A terminal's Ctrl-C is the host's affair from the start.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    if wire is not None and arguments in ([], ["serve"]) and not os.isatty(wire.read_fd):
        # As hosts launch it: there is nothing to parse, and every import delays the answer to `initialize`.
        # None of it is ever garbage: the collector need not look at it, neither now nor later.
        gc.disable()
        from plugin.cli import serve  # noqa: PLC0415 - with the collector off

        gc.freeze()
        gc.enable()
        return serve.serve(wire)
    # Only now: whatever an import prints goes to stderr, and the wire stays clean.
    from plugin.cli import command  # noqa: PLC0415 - see above

    return command.run(arguments, wire)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
