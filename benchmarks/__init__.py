"""Scripts that print the numbers of benchmarks/README.md."""

from consilium import reuse_freed_memory

reuse_freed_memory()  # as every command does
