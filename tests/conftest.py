"""Shared by all tests: the repository's root, and the house's own programs as modules."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "book/tools"):
    sys.path.insert(0, str(folder))
