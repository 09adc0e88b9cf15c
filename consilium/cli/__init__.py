"""One module per command: `add_arguments` to its parser, and `run`, which calls a library."""
