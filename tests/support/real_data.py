"""Published data outside the repository, which a few tests look at: in the folder that $SEGKIT_TEST_DATA names."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SEGKIT_TEST_DATA", ""))


def needs(place: str) -> pytest.MarkDecorator:
    """Skip a test where `place` (a path below that folder) is not there."""
    there = Path() != FOLDER and (FOLDER / place).exists()
    return pytest.mark.skipif(not there, reason=f"needs {place} in the folder that SEGKIT_TEST_DATA names")
