"""One module per command: parse arguments, call a library, print."""
