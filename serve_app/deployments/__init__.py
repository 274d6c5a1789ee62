"""Ray Serve deployments and the graph of an application."""
