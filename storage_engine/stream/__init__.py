"""stream: see docs/architecture.md."""
