"""A web page and a REST API that classify uploaded images."""

TOKEN_VARIABLE = "CONSILIUM_TOKEN"  # environment variable with the token of the server
