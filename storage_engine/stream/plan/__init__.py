"""Plan: a statement as a tree of operators, and what is decided of it without a store: sharing, panes, placement of state."""
