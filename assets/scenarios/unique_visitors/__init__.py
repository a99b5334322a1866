"""Scenario 5: exact unique visitors, by bitmaps in the store (path A) and by rows in the lake (path B)."""
