"""kv: primary-key buckets over a changelog. Key index, merge engines, changelog rows, prefix lookups, auto-increment."""

from storage_engine.kv.auto_increment import AutoIncrement, Ids, IdSegments
from storage_engine.kv.batch import combine
from storage_engine.kv.bucket import KvBucket, KvSnapshot
from storage_engine.kv.change import KvChange
from storage_engine.kv.key_index import ArrayCopy, KeyIndex, items_of
from storage_engine.kv.merge import ChangePlan, checked_bitmaps, plan_delete, plan_upsert
from storage_engine.kv.prefix_index import PrefixIndex, joined
from storage_engine.kv.spilled_index import SpilledIndex, SpilledPrefixes, follow

__all__ = [
    "ArrayCopy",
    "AutoIncrement",
    "ChangePlan",
    "IdSegments",
    "Ids",
    "KeyIndex",
    "KvBucket",
    "KvChange",
    "KvSnapshot",
    "PrefixIndex",
    "SpilledIndex",
    "SpilledPrefixes",
    "checked_bitmaps",
    "combine",
    "follow",
    "items_of",
    "joined",
    "plan_delete",
    "plan_upsert",
]
