"""What predictions say: pure functions on tables and arrays."""
