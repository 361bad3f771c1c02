"""One module a row, or a few that share their set-up; each has `async def measure(runs: int) -> list[Table]`."""
