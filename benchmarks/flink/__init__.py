"""Flink: the same stream jobs in Apache Flink over Apache Fluss, set up, started, measured and stopped here."""
