"""Ray Serve's HAProxy, taught to route by `model`: see haproxy.py."""
