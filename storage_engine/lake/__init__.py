"""lake: see docs/architecture.md."""
