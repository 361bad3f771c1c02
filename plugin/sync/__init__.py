"""Brings finished work to the platform: scan, queue, send, and what the Go agent left behind."""
