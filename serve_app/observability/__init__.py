"""Dashboards and alerts: data, and the queries that they hold."""
