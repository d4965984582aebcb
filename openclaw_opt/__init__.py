"""openclaw-opt: a compiler for models. A recipe turns a checkpoint into a verified engine and a report."""

__version__ = "0.1.0"
