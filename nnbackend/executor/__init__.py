"""Executors: what runs a program. Each backend names its own; a program with parts that are written
in Python is interpreted."""
