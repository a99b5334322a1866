# pyarrow ships no types, and makes the functions of pyarrow.compute at import time: everything is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
