"""All I/O to the API server: transport, reflectors, the one writer, the Lease, events.

The only room that imports the `kubernetes` package, and of that only what finds and loads credentials. Bodies
stay raw JSON, because parsing a pod into typed models costs ten times as much as decoding it.
"""
