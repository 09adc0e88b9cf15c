"""Members in other formats: how their files are written, read and held to torch."""
