"""Every guild that an agent belongs to shows what the agent is doing now."""
