"""Narrower networks: which channels go, and what that is measured to save."""
