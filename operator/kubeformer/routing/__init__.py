"""Which replica gets a request: `table` turns what the API server says into names and endpoints, `pick` chooses. Pure."""
