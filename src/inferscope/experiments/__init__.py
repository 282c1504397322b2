"""Experiments: drive a model on purpose."""
