"""Compiled models: what a configuration wants, what a directory holds, and whether they fit."""
