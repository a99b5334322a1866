"""Access: users, tokens, grants, and the one decision what a principal may do. They live in the store as objects, in the commit log.

rights.py   rights, scopes, implications: pure
secrets.py  password hashes and tokens: how they are made and compared
records.py  users, tokens and grants as values of objects
users.py    managing them through any Backend
"""

from storage_engine.access.records import GRANT, KINDS, TOKEN, USER, GrantRecord, TokenRecord, UserRecord
from storage_engine.access.rights import ADMINISTRATOR, CLUSTER, RIGHTS, Grant, Grants, Scope, database, table
from storage_engine.access.secrets import PasswordHash, hash_password, hash_token, new_token, parse_token
from storage_engine.access.users import Users

__all__ = [
    "ADMINISTRATOR",
    "CLUSTER",
    "GRANT",
    "KINDS",
    "RIGHTS",
    "TOKEN",
    "USER",
    "Grant",
    "GrantRecord",
    "Grants",
    "PasswordHash",
    "Scope",
    "TokenRecord",
    "UserRecord",
    "Users",
    "database",
    "hash_password",
    "hash_token",
    "new_token",
    "parse_token",
    "table",
]
