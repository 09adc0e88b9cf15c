"""A web page and an API that classify uploaded images."""
