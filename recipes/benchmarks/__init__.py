"""Benchmarks: what watching costs, what selecting costs, what hiding saves. See README.md beside this file."""
