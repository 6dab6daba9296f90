from __future__ import annotations

import pytest

from mmrazor_brecq.runtime import allocator
from mmrazor_brecq.runtime.allocator import (
    DEFAULT,
    MMAP_THRESHOLD,
    TRIM_THRESHOLD,
    reuse_freed_memory,
)


@pytest.fixture
def settings(monkeypatch):
    """What the C library was told last."""
    last = {}

    class Library:
        def mallopt(self, parameter, value):
            last[parameter] = value

        def malloc_trim(self, pad):
            last['trimmed'] = True

    monkeypatch.setattr(allocator, '_c_library', Library)
    return last


def test_freed_memory_is_kept_until_the_outermost_context_ends(settings):
    with reuse_freed_memory():
        with reuse_freed_memory():
            pass
        assert settings[TRIM_THRESHOLD] > DEFAULT < settings[MMAP_THRESHOLD]
    assert settings[TRIM_THRESHOLD] == DEFAULT == settings[MMAP_THRESHOLD]


def test_it_ends_where_an_error_is_raised(settings):
    with pytest.raises(KeyError), reuse_freed_memory():
        raise KeyError
    assert settings[TRIM_THRESHOLD] == DEFAULT


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, '_c_library', lambda: None)
    with reuse_freed_memory():
        pass
