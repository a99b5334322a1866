"""Fluss: the same store surface over an Apache Fluss cluster, through its Python client pyfluss.

Owner of: one connection, one event loop thread (loop.py). Everything durable lives in the cluster.
Holds: what the client cannot do is refused by UnsupportedByBackend; what it does silently wrong is done
       right here or refused (docs/fluss.md).
"""
