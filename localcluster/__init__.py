"""A real two-node Kubernetes on this machine, without a container engine. Run it with `python -m localcluster`."""
