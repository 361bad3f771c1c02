"""mcp's Python SDK: one typed tool."""

from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel

server = MCPServer("echo")


class Echo(BaseModel):
    """What the tool answers."""

    agent_id: str
    n: int


@server.tool()
async def echo(agent_id: str, n: int) -> Echo:
    """Answer with the params."""
    return Echo(agent_id=agent_id, n=n)


server.run()
