"""Where the configuration comes from: the environment, then the host, then the file, then the defaults.

Each source is read whole, so that everything that is wrong is named at once. Nothing in a value is expanded but the
leading `~` of a path.
"""

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_origin

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from plugin.config.keys import FILE_VARIABLE, PREFIX, Key, bare, element_of, keys, nearest, struct_of
from plugin.config.reading import PLATFORM_KEY, Reading
from plugin.config.rules import check
from plugin.config.settings import Config, home
from plugin.errors import ConfigInvalid

RESTART_ONLY = tuple(key.path for key in keys() if key.about.restart)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Problems = list[tuple[str, str]]


class _Source(Struct, frozen=True):
    """The sound values of one source by dotted path, and the name of where each came from."""

    values: Mapping[str, object]
    names: Mapping[str, str]


def load(environ: Mapping[str, str], host: Mapping[str, object] | None = None) -> Config:
    """Return the configuration in force; `host` is the whole of what `initialize` or `configure` gave.

    Raises:
        ConfigInvalid: with a (path, text) for everything that is wrong in any source.
    """
    problems: Problems = []
    sources = (_environment(environ, problems), _tree("host", host or {}, problems), _file(environ, problems))
    values, names = _merge(sources)
    config = _fill(_assemble(Config, "", values), environ)
    problems.extend((path, f"{text} ({names.get(path.partition('[')[0], 'default')})") for path, text in check(config))
    if problems:
        raise ConfigInvalid(problems)
    return config


def changed(old: Config, new: Config) -> list[str]:
    """Return the dotted paths that differ; `bindings` and `identities` count as one each."""
    return [key.path for key in keys() if value_at(old, key.path) != value_at(new, key.path)]


def check_change(old: Config, new: Config) -> None:
    """Refuse a change of what only a restart can change.

    Raises:
        ConfigInvalid: naming each such path.
    """
    fixed = [path for path in changed(old, new) if path in RESTART_ONLY]
    if fixed:
        raise ConfigInvalid([(path, "cannot change while the plugin runs; a restart is needed") for path in fixed])


def value_at(config: Config, path: str) -> object:
    """Return the value of a key by its dotted path."""
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def explain(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values for a person to read; secrets and a proxy's password are `***`."""
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    for server in (plain["platform"], plain["fabric"]):
        if server["proxy"] and "@" in server["proxy"]:
            scheme, _, rest = server["proxy"].partition("://")
            server["proxy"] = f"{scheme}://***@{rest.rpartition('@')[2]}"
    return plain


def _environment(environ: Mapping[str, str], problems: Problems) -> _Source:
    by_path = {key.path: key for key in keys()}
    known = {key.variable for key in by_path.values()} | {FILE_VARIABLE}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            Reading("environment", problems).refuse(name, f"unknown name{nearest(name, known)}")
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for key in by_path.values():
        # The platform's tokens of the Go agent are read where they are used: plugin/credentials.py.
        candidates = (key.variable,) if key.secret else key.environment
        variable = next((name for name in candidates if environ.get(name, "").strip()), None)
        if variable is None:
            continue
        reading = Reading(f"environment {variable}", problems)
        value = _parse(environ[variable].strip(), key, reading)
        if value is not UNSET:
            values[key.path], names[key.path] = value, reading.source
    Reading("environment", problems).choice([path for path in PLATFORM_KEY if path in values])
    return _Source(values, names)


def _parse(text: str, key: Key, reading: Reading) -> object:
    """Read the text of a variable as its key's type wants it."""
    kind, value = bare(key.kind), cast("object", text)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return reading.refuse(key.path, "expected text in UTF-8, got other bytes")
    if kind is bool:
        value = _WORDS.get(text.lower(), text)
    elif kind is int or kind is float:
        value = _number(text)
    elif get_origin(kind) is Literal:
        value = text.lower()  # shells and containers write levels in capitals
    elif element := element_of(key.kind):
        if struct_of(element) or text.startswith("["):
            try:
                value = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError):
                return reading.refuse(key.path, "expected a list in JSON, got something that is not JSON")
        else:
            value = [item.strip() for item in text.split(",") if item.strip()]
    return reading.value(value, key.kind, key.path)


def _number(text: str) -> object:
    try:
        return msgspec.convert(text, int | float, strict=False)
    except msgspec.ValidationError:
        return text


def _tree(source: str, tree: Mapping[str, object], problems: Problems) -> _Source:
    values = Reading(source, problems).tree(tree)
    return _Source(values, dict.fromkeys(values, source))


def _file(environ: Mapping[str, str], problems: Problems) -> _Source:
    named = environ.get(FILE_VARIABLE, "").strip()
    path = _expand(named, environ) if named else _usual_file(environ)
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        if named:
            problems.append((path, f"there is no such file (environment {FILE_VARIABLE})"))
        return _Source({}, {})
    except OSError as exc:
        problems.append((path, f"cannot be read: {exc.strerror}"))
        return _Source({}, {})
    return _toml(path, text, problems)


def _usual_file(environ: Mapping[str, str]) -> str:
    """Return where the system keeps a user's settings, as the XDG base directories or macOS have it."""
    given = environ.get("XDG_CONFIG_HOME", "").strip()
    usual = "~/Library/Application Support" if sys.platform == "darwin" else "~/.config"
    return _expand(f"{given if Path(given).is_absolute() else usual}/agentic-sync/config.toml", environ)


def _toml(path: str, text: bytes, problems: Problems) -> _Source:
    import tomllib  # noqa: PLC0415 - most have no file, and every import delays the start

    try:
        tree = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        where = str(exc).rpartition("(")[2].rstrip(")") if isinstance(exc, tomllib.TOMLDecodeError) else "not UTF-8"
        problems.append((path, f"not a TOML file ({where})"))
        return _Source({}, {})
    return _tree(f"file {path}", tree, problems)


def _merge(sources: Sequence[_Source]) -> tuple[dict[str, object], dict[str, str]]:
    """Join the sources, the first one winning; the ways to give the platform's key are taken from one source whole."""
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for source in sources:
        settled = any(path in values for path in PLATFORM_KEY)
        for path, value in source.values.items():
            if path not in values and not (settled and path in PLATFORM_KEY):
                values[path], names[path] = value, source.names[path]
    return values, names


def _assemble(struct: type[Any], prefix: str, values: Mapping[str, object]) -> Any:  # noqa: ANN401 -- an instance of `struct`
    members: dict[str, object] = {}
    for item in msgspec.structs.fields(struct):
        path = prefix + item.name
        if section := struct_of(item.type):
            members[item.name] = _assemble(section, f"{path}.", values)
        elif path in values:
            members[item.name] = values[path]
    return struct(**members)


def _fill(config: Config, environ: Mapping[str, str]) -> Config:
    """Reckon the defaults that depend on the machine, and make every path absolute."""

    def path(text: str | None) -> str | None:
        return None if text is None else _expand(text, environ)

    root = _expand(config.root or str(home(environ) / "Code" / ".core"), environ)
    platform, fabric = config.platform, config.fabric
    return replace(
        config,
        agent_id=config.agent_id or socket.gethostname()[:255] or "localhost",
        root=root,
        state_dir=_expand(config.state_dir or str(Path(root) / "sync"), environ),
        platform=replace(platform, ca_file=path(platform.ca_file), api_key_file=path(platform.api_key_file)),
        fabric=replace(fabric, ca_file=path(fabric.ca_file)),
        identities=tuple(replace(one, api_key_file=path(one.api_key_file)) for one in config.identities),
    )


def _expand(text: str, environ: Mapping[str, str]) -> str:
    if text == "~" or text.startswith("~/"):
        text = (environ.get("HOME") or str(Path.home())) + text[1:]
    return str(Path(text).absolute())
