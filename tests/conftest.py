"""Shared by all tests: the repository's root, and the house's own programs as modules."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, and nobody waits for a hub

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "book/tools", ROOT / "book/_ext"):
    sys.path.insert(0, str(folder))
