"""Dialect: the text of Flink SQL as a syntax tree, its types, and the trees of DuckDB SQL made from templates."""
