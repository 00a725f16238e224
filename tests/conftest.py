"""Puts this folder on the path, for the helpers that several test files share."""
