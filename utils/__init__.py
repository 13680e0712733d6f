"""Helpers that any room may use and that use no room."""
