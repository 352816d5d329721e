"""Statements as files: pure functions from the message to text or bytes."""
