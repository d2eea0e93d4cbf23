"""The reference target: the interpreter as an engine."""
