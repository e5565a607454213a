"""The version, in a place that every module can ask."""

__version__ = "0.1.0"
