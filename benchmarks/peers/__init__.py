"""Peers: Redis, Kafka and Apache Fluss on loopback, started for a comparison and stopped after it. `python -m benchmarks.peers --help`."""
