"""What to look at: Grafana boards, Prometheus rules and scrape configurations, as data.

Names of metrics: docs/observability.md. Ray's agents export what replicas report with the prefix
`ray_`; vLLM's names are those of its 0.29, and neuron-monitor's those of AWS's
neuron-monitor-prometheus.py.
"""
