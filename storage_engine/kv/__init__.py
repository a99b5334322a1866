"""kv: see docs/architecture.md."""
