"""pygls: a custom request, as its documentation shows it."""

from typing import Any

from pygls.lsp.server import LanguageServer

server = LanguageServer("echo", "1")


@server.feature("echo")
async def echo(params: Any) -> dict[str, object]:  # noqa: ANN401 - pygls makes its type of the params
    """Answer with the params."""
    return {"agent_id": params.agent_id, "n": params.n}


server.start_io()
