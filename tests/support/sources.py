"""The sources of a configuration, written for a test, and what is wrong with them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from plugin.config.sources import load
from plugin.errors import ConfigInvalid

Host = Mapping[str, object]


def write(environ: dict[str, str], text: str) -> Path:
    """Write the configuration file."""
    path = Path(environ["AGENTIC_SYNC_CONFIG"])
    path.write_text(text, encoding="utf-8")
    return path


def problems(environ: Mapping[str, str], host: Host | None = None) -> dict[str, str]:
    """Return what is wrong at each path of a configuration that is refused."""
    with pytest.raises(ConfigInvalid) as caught:
        load(environ, host)
    found = dict(caught.value.problems)
    assert len(found) == len(caught.value.problems), "one problem a path"
    return found
