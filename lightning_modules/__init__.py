"""What learns and what votes."""
