"""Frontends: a model in, IR out."""
