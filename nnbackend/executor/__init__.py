"""Executors, which run programs. Each backend names its own; a program with parts written in
Python is interpreted."""
