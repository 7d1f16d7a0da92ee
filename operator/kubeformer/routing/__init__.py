"""Which replica gets a request: `table` turns what the API server says into names, `pick` chooses. Pure."""
