"""python-lsp-jsonrpc, as python-lsp-server uses it: blocking reads, handlers called where the message was read."""

import sys

from pylsp_jsonrpc.dispatchers import MethodDispatcher
from pylsp_jsonrpc.endpoint import Endpoint
from pylsp_jsonrpc.streams import JsonRpcStreamReader, JsonRpcStreamWriter


class Server(MethodDispatcher):
    """What may be called."""

    def m_initialize(self, agent_id: str, n: int) -> dict[str, object]:
        """Answer the first request."""
        return {"agent_id": agent_id, "n": n}

    def m_echo(self, agent_id: str, n: int) -> dict[str, object]:
        """Answer with the params."""
        return {"agent_id": agent_id, "n": n}


writer = JsonRpcStreamWriter(sys.stdout.buffer)
JsonRpcStreamReader(sys.stdin.buffer).listen(Endpoint(Server(), writer.write).consume)
