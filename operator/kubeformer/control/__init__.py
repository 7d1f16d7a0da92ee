"""The loop that carries plans out: store, work queue, gate, workers, audit.

Generic and without I/O of its own: it knows no kind by name and reaches the API server only through the protocols
of `ports`, so that every test can put a fake in their place and fail any single write.
"""
