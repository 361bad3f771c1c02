"""What is loaded before `initialize` is answered, and what it is answered with."""

import subprocess
import sys
from pathlib import Path

import msgspec

from plugin import actions, offer
from plugin.app import App
from plugin.config import Platform
from plugin.endpoint import Reach, check_url
from plugin.errors import PluginError

BEFORE_THE_ANSWER = """
import os, sys
write = os.write
def answer(fd, data):
    sent = write(fd, data)
    if b'"host_callbacks"' in data:
        write(2, ",".join(sys.modules).encode())
        os._exit(0)
    return sent
os.write = answer
sys.argv = ["agentic-sync", "serve"]
from plugin.__main__ import main
main()
"""


def test_what_does_the_work_is_loaded_after_initialize_is_answered(tmp_path: Path) -> None:
    config = {"state_dir": str(tmp_path)}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"config": config}}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_THE_ANSWER],
        input=msgspec.json.encode(asked) + b"\n",
        capture_output=True,
        check=True,
        env={"HOME": str(tmp_path)},
    )
    loaded = set(done.stderr.decode().split(","))
    assert "plugin.app" in loaded
    heavy = {"aiohttp", "argparse", "httpx", "jsonschema", "plugin.manifest", "plugin.services", "sqlite3", "tomllib"}
    assert not loaded & heavy


def test_the_offer_of_the_manifest_is_that_of_the_code() -> None:
    assert offer.read() == offer.build(actions.method_table(App(environ={})))


def test_without_the_manifest_of_this_version_the_offer_is_made_from_the_code(tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise PluginError("no manifest")

    assert offer.read(nowhere) is None
    path = tmp_path / "manifest.json"
    assert offer.read(lambda: path) is None
    for content in (b"", b"{}", b'{"version": "0", "actions": [], "host_callbacks": []}'):
        path.write_bytes(content)
        assert offer.read(lambda: path) is None


def test_the_default_url_which_is_not_judged_at_the_start_keeps_the_rules() -> None:
    assert Platform().base_url is not None
    assert check_url(Platform().base_url, Reach())
