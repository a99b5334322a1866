"""Functions: what can be called in SQL: scalar functions, aggregates, the users' own, and expressions made of them."""
