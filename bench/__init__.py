"""Benchmarks against the physical limit. Each is one command, for example `python -m bench.codec`."""
