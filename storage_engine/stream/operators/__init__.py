"""Operators: plans as DuckDB SQL, and one micro-batch of them run on Arrow data and state tables."""
