"""Removal of channels: structure, channel groups, importance, search, measurement."""
