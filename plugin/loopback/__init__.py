"""A platform, a center and guilds on this machine: for the demo, for the tests, and for authors of hosts and backends.

They are real HTTP servers on 127.0.0.1 that keep every request they got, every effect it had, and misbehave on request
(`faults.py`). Where a backend is private, the server here is its specification.
"""
