"""NewProject: what `flashlake init` writes. A project of its own that uses the platform: configuration, two tables, the code location."""
