"""Where a token is taken from, each time it is needed: a file may appear, change or go while the plugin runs.

The platform's token: CORE_AGENT_API_KEY, else CORE_BRAIN_KEY, else what the configuration says, else the file
`<CORE_HOME or HOME>/.claude/brain.key`. The place that was chosen is the only one looked at: when nothing is there,
there is no token, and never one that was meant for something else.
"""

import errno
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from plugin.config import Config, Identity, home
from plugin.secret import Secret

_PLATFORM_VARIABLES = ("CORE_AGENT_API_KEY", "CORE_BRAIN_KEY")
_MAX_BYTES = 16 * 1024
_log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]
_Finding = tuple[Secret | None, str | None]  # a token, or why there is none


class Credential:
    """A token and its place: a value, a variable of the environment, or a file; the first that is given counts."""

    def __init__(
        self,
        *,
        owner: str = "",
        first: tuple[str, ...] = (),
        value: Secret | None = None,
        env: str | None = None,
        file: Path | None = None,
        environ: Mapping[str, str],
    ) -> None:
        """Take the place; nothing is read before `current`. Variables in `first` that are set come before it."""
        self._owner = owner
        self._first = first
        self._value = value
        self._env = env
        self._file = file
        self._shown = "" if file is None else _short(file, environ.get("HOME"))
        self._environ = environ
        self._read: tuple[_Stamp, _Finding] | None = None
        self._problem: str | None = None

    @property
    def source(self) -> str:
        """Where the token is looked for, in words for a person."""
        match self._place():
            case Secret():
                return "configuration"
            case Path():
                return f"file {self._shown}"
            case str() as name:
                return f"environment {name}"
            case None:
                return "none"

    @property
    def problem(self) -> str | None:
        """Why the last `current` found no token; None when it found one."""
        return self._problem

    def current(self) -> Secret | None:
        """Return the token there is now, or None and say why in `problem`; a problem is logged once.

        A file costs one stat as long as it stays the same, so this may be called before every request.
        """
        token, problem = self._find()
        if problem is not None and problem != self._problem:
            _log.warning("no usable key", extra={"fields": {"owner": self._owner, "problem": problem}})
        self._problem = problem
        return token

    def forget(self) -> None:
        """Read the file again at the next call, whatever its stat says."""
        self._read = None

    def _place(self) -> Secret | Path | str | None:
        for name in self._first:
            if self._environ.get(name, "").strip():
                return name
        return self._value or self._env or self._file

    def _find(self) -> _Finding:
        match self._place():
            case Secret() as value:
                return _judge(value.reveal(), "the configured key")
            case Path() as file:
                return self._find_in(file)
            case str() as name:
                return _judge(self._environ.get(name, ""), f"the environment variable {name}")
            case None:
                return None, "no key is configured"

    def _find_in(self, file: Path) -> _Finding:
        name = self._shown
        try:
            if self._read is None or self._read[0] != _stamp(file.stat()):
                text, stamp = _contents(file)
                self._read = stamp, _judge(text, name)
        except (OSError, ValueError) as exc:
            self._read = None
            if isinstance(exc, FileNotFoundError):
                return None, f"{name} does not exist"
            return None, f"{name} cannot be read: {getattr(exc, 'strerror', None) or 'not a file name'}"
        return self._read[1]


def platform_credential(config: Config, environ: Mapping[str, str]) -> Credential:
    """Return where the platform's token comes from."""
    platform = config.platform
    return Credential(
        owner="platform",
        first=_PLATFORM_VARIABLES,
        value=platform.api_key,
        env=platform.api_key_env,
        file=Path(platform.api_key_file) if platform.api_key_file else home(environ) / ".claude" / "brain.key",
        environ=environ,
    )


def identity_credential(identity: Identity, environ: Mapping[str, str]) -> Credential:
    """Return where an agent's key for the center comes from."""
    return Credential(
        owner=f"agent {identity.agent_id}",
        value=identity.api_key,
        env=identity.api_key_env,
        file=None if identity.api_key_file is None else Path(identity.api_key_file),
        environ=environ,
    )


def _judge(text: str, name: str) -> _Finding:
    token = text.strip()
    if not token:
        return None, f"{name} is empty"
    if not token.isascii() or not token.isprintable() or " " in token:
        return None, f"{name} holds more than a key: a line break, a space, or a character that no key has"
    return Secret(token), None


def _short(file: Path, folder: str | None) -> str:
    return f"~/{file.relative_to(folder)}" if folder and file.is_relative_to(folder) else str(file)


def _contents(file: Path) -> tuple[str, _Stamp]:
    """Read a key's file, never waiting for a pipe that somebody put in its place."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, "too large to be a key")
        return opened.read(_MAX_BYTES).decode("utf-8-sig", "replace"), _stamp(status)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino
