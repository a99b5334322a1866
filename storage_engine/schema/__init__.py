"""Schema: types, table descriptors, DDL, validation, and what follows from a table's keys.

Owner: the catalog (engine/) holds descriptors; this room only says what is legal and what rows, keys, buckets and partitions mean.
Pure: no file, clock or network anywhere in this room.
"""

from storage_engine.schema.bucketing import bucket_ids
from storage_engine.schema.ddl import parse_statements, render_create_table
from storage_engine.schema.descriptor import Column, Offsets, TableBucket, TableDescriptor
from storage_engine.schema.evolve import add_columns, drop_columns, modify_columns, rename_column, set_options
from storage_engine.schema.keys import encode_keys, has_exact_hash, hash64, hash64_of
from storage_engine.schema.options import KNOWN_OPTIONS, check_effective, check_options, delete_behavior, duration_ms, option_value
from storage_engine.schema.partitions import check_partition_name, encode_partitions, partition_names, partition_values_of
from storage_engine.schema.predicate import matching_partitions, parse_predicate, partition_values, predicate_columns
from storage_engine.schema.reader import parse_options_hint
from storage_engine.schema.rows import as_table, conform, conform_keys
from storage_engine.schema.types import arrow_type
from storage_engine.schema.validate import aggregate_fits, canonical_type, check_targets, validate

__all__ = [
    "KNOWN_OPTIONS",
    "Column",
    "Offsets",
    "TableBucket",
    "TableDescriptor",
    "add_columns",
    "aggregate_fits",
    "arrow_type",
    "as_table",
    "bucket_ids",
    "canonical_type",
    "check_effective",
    "check_options",
    "check_partition_name",
    "check_targets",
    "conform",
    "conform_keys",
    "delete_behavior",
    "drop_columns",
    "duration_ms",
    "encode_keys",
    "encode_partitions",
    "has_exact_hash",
    "hash64",
    "hash64_of",
    "matching_partitions",
    "modify_columns",
    "option_value",
    "parse_options_hint",
    "parse_predicate",
    "parse_statements",
    "partition_names",
    "partition_values",
    "partition_values_of",
    "predicate_columns",
    "rename_column",
    "render_create_table",
    "set_options",
    "validate",
]
