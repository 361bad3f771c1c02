"""The benchmark: the plugin as users run it, beside its peers, the floor, and the way the Go programs work."""
