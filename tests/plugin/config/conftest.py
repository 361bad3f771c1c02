from pathlib import Path

import pytest


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose configuration file is empty."""
    (tmp_path / "config.toml").touch()
    return {"HOME": str(tmp_path), "AGENTIC_SYNC_CONFIG": str(tmp_path / "config.toml")}
