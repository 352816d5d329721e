"""Signing in: the device flow, and what it leaves in the settings folder."""
