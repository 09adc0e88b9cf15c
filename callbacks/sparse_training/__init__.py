"""Two-stage sparse training."""
