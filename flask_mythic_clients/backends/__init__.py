"""Implementations of the ports; each is imported by the host that wants it."""
