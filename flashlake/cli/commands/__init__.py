"""commands: what each command does, one module per group; usage.py says how they are called."""
