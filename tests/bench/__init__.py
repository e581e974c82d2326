"""Measurements of speed and memory: ``python -m tests.bench --help``. Results: docs/performance.md."""
