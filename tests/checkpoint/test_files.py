"""Files are whole or absent, and none is lost."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from mmrazor_brecq.checkpoint import (
    keep_older,
    save_tensors,
    write_whole,
)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_text('old')

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r"Cannot write '.*/file' \(No space"):
        write_whole(str(path), 'half')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_older_files_are_renamed_to_the_next_number(tmp_path):
    for content in 'abc':
        keep_older(str(tmp_path / 'f.pth'))
        (tmp_path / 'f.pth').write_text(content)
    read = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert read == {'f.1.pth': 'a', 'f.2.pth': 'b', 'f.pth': 'c'}


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in 'a', 'b':
        save_tensors(dict(x=torch.arange(3)), str(tmp_path / name))
    first, second = ((tmp_path / name).read_bytes() for name in 'ab')
    assert first == second
