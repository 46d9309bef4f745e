"""What all tests share: this folder is importable (`making`, `corpora`), and hypothesis knows no deadline."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")
