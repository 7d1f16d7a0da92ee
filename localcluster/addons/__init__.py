"""What the add-ons of the local cluster share: building images, and loops that keep in step with the API server."""
