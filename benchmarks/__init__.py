"""Scripts that print the numbers of benchmarks/README.md."""
