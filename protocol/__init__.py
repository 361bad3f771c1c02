"""A JSON-RPC 2.0 peer over a byte stream, the same at both ends; it knows nothing of the plugin."""
