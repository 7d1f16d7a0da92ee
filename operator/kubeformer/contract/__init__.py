"""What passes between rooms: the words that operator, trainer, engine and gateway share.

Pydantic and the standard library only, because the control plane (no torch) and the runtime (no
Kubernetes) both import it. `names` has names of variables, ports, paths, labels and exit codes;
`job`, `server` and `progress` are the JSON documents themselves.
"""
