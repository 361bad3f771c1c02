"""The README's tables, made from the code, between their markers."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from plugin.config import keys
from plugin.errors import PluginError
from plugin.manifest import ACTION_PREFIX
from protocol.methods import MethodTable


def refresh(text: str, table: MethodTable) -> str:
    """Return a README's text with its two tables as the code has them.

    Raises:
        PluginError: when a marker is missing.
    """
    for name, lines in (("config", _settings()), ("actions", _actions(table))):
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise PluginError(f"the README has no {begin.strip()} followed by {end}")
        text = "".join((before, begin, "\n".join(lines), "\n", end, after))
    return text


def check(path: Path, table: MethodTable) -> list[str]:
    """Return what is wrong with a README's tables; nothing when they are as the code has them."""
    try:
        text = path.read_text(encoding="utf-8")
        fresh = refresh(text, table)
    except OSError as exc:
        return [f"{path.name}: cannot be read: {exc.strerror}"]
    except PluginError as exc:
        return [f"{path.name}: {exc.message}"]
    return [] if fresh == text else [f"{path.name}: its tables differ from the code"]


def write(path: Path, table: MethodTable) -> None:
    """Bring a README's tables up to date."""
    path.write_text(refresh(path.read_text(encoding="utf-8"), table), encoding="utf-8")


def _settings() -> Iterator[str]:
    yield "| key | environment | default | what it does |"
    yield "|---|---|---|---|"
    for key in keys.table():
        default = key.default_text if key.default_text in {"required", "none", "host name"} else f"`{key.default_text}`"
        # A key within a list has no variable of its own: the whole list is one.
        names = key.about.environment if "[]" in key.path else key.environment
        variables = "<br>".join(f"`{name}`" for name in names)
        yield f"| `{key.path}` | {variables} | {default} | {key.about.help} |"


def _actions(table: MethodTable) -> Iterator[str]:
    yield "| action | parameters | answer | what it does |"
    yield "|---|---|---|---|"
    for method in table:
        if method.name.startswith(ACTION_PREFIX):
            names = "<br>".join(f"`{name}`" for name in (method.name, *method.aliases))
            yield f"| {names} | {_members(method.params)} | {_members(method.result)} | {method.description} |"


def _members(kind: object) -> str:
    struct = keys.struct_of(kind)
    fields = () if struct is None else msgspec.structs.fields(struct)
    return ", ".join(f"`{field.encode_name}{'' if field.required else '?'}`" for field in fields)
