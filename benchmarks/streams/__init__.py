"""Streams: rows per second, latency and memory of stream jobs, in real processes."""
