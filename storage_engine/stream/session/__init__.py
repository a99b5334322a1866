"""Session: SQL statements of a person or program, answered one after another."""
