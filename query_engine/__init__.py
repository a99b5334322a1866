"""query_engine: DuckDB over the store and the lake. QueryEngine answers SQL; verify.py proves that stream and batch agree."""

from query_engine.engine import QueryEngine

__all__ = ["QueryEngine"]
