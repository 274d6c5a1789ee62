"""A config file as Kubernetes objects: pure and deterministic, no cluster is asked."""
