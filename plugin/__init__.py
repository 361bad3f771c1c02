"""Keeps a platform and every guild true about a fleet of agents."""

__version__ = "0.1.0"
