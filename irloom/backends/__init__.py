"""Backends: IR in, an engine out."""
