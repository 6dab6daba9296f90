"""Elementwise maths in one pass over memory, where a compiler is at hand.

A chain of small operations reads and writes its tensors once for each of
them. ``torch.compile`` makes one kernel of the chain, for all sizes.
Without a compiler the plain function runs. (``TORCH_COMPILE_DISABLE=1`` is
torch's own switch.)
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether somebody records what is computed: ``torch.jit.trace``,
    ``torch.export`` or ``torch.compile`` around a whole network.

    They want plain operators: neither compiled ones, nor a function with a
    gradient of its own, which no file can hold.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class Kernel:
    """A function that runs as one kernel, without gradients.

    It is compiled for the first arguments of every kind: types, what is
    None, which dimensions are 1. What was compiled is kept on disk, where
    the compiler keeps its own (``TORCHINDUCTOR_CACHE_DIR``): to trace the
    function and to look its code up takes a quarter of a second, to load
    it a fiftieth of one.

    Args:
        function (callable): Of tensors and constants.
    """

    #: Whether functions run as they are written.
    plain = os.environ.get('TORCH_COMPILE_DISABLE') == '1'

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        #: What runs, for arguments of these very sizes.
        self.fitting: dict[tuple, Callable] = {}
        #: What was compiled so far, for each number of threads.
        self.versions: dict[int, list[Any]] = {}
        #: What asks by itself whether it fits, where nothing can be kept.
        self.compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.plain or is_traced():
            return self.function(*args)
        # The compiler asks what a view is a view of, what is a parameter, and
        # what needs a gradient, and compiles anew for every answer.
        args = tuple(x.data if isinstance(x, Tensor) else x for x in args)
        # To ask a version whether it fits takes longer than it runs.
        key = (torch.get_num_threads(), *map(_sizes, args))
        run = self.fitting.get(key)
        return run(*args) if run else self._first(args, key)

    def _first(self, args: tuple, key: tuple) -> Any:
        """Find or compile what fits, and run it."""
        try:
            run = self._version(args, key)
            out = run(*args)
        except Exception as error:
            out = self.function(*args)  # It raises what is its own fault.
            # A compiler that fails costs speed, never the run.
            reason = str(error).partition('\n')[0]
            _warn_once(
                reason, f'{self.function.__name__} runs uncompiled: {reason}'
            )
            self.plain = True
        else:
            self.fitting[key] = run
        return out

    def _version(self, args: tuple, key: tuple) -> Callable:
        threads, *_ = key
        folder = _folder(threads, self.function.__code__.co_filename)
        if threads not in self.versions:
            self.versions[threads] = list(_loaded(folder, self.function))
        versions = self.versions[threads]
        for version in versions:
            if version.guard_check(*args):
                return version.fn
        if self.compiled is not None:
            return self.compiled
        if not _compiler():
            return self.function
        compiled: Any = torch.compile(
            self.function, dynamic=True, fullgraph=True
        )
        try:
            version = compiled.aot_compile((args, {}))
        except Exception:  # An older torch, or a device it cannot do it for.
            self.compiled = compiled
            return compiled
        versions.append(version)
        name = f'{self.function.__qualname__}-{_digest(repr(key))}'
        with suppress(Exception):  # Then it is compiled anew the next time.
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f'{os.getpid()}.tmp'
            version.save_compiled_function(str(part))
            part.replace(folder / name)  # Others may be reading.
        return version.fn


def _sizes(x: Any) -> Any:
    """All that a compiler may ask of an argument."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device
    return type(x), x


#: What was warned of in this process.
_told: set[str] = set()


def _warn_once(reason: str, message: str) -> None:
    """Warn, unless another function has met the same."""
    if reason not in _told:
        _told.add(reason)
        warnings.warn(message, stacklevel=4)


def _compiler() -> bool:
    """Whether there is one."""
    compiler = os.environ.get('CXX', 'g++')
    if not (shutil.which(compiler) or torch.cuda.is_available()):
        _warn_once(
            compiler,
            f'There is no {compiler}: all runs uncompiled, and takes longer. '
            'Install it, or name another compiler in CXX',
        )
        return False
    # It warns of a missing accelerator on every machine without one.
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    return True


@functools.cache
def _folder(threads: int, source: str) -> Path:
    """Where versions of a file's functions lie, with so many threads."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cpu = torch.backends.cpu.get_cpu_capability()
    versions = torch.__version__, platform.python_version(), cpu, threads
    sources = sorted(Path(source).parent.glob('*.py'))
    state = _digest(repr(versions), *(path.read_text() for path in sources))
    return Path(cache_dir(), 'mmrazor_brecq', state)


def _digest(*texts: str) -> str:
    return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:16]


def _loaded(folder: Path, function: Callable) -> Iterator[Any]:
    """The versions that lie on disk, but for those that are damaged."""
    for path in sorted(folder.glob(f'{function.__qualname__}-*')):
        try:
            with path.open('rb') as file:
                yield torch.compiler.load_compiled_function(
                    file, f_globals=function.__globals__
                )
        except Exception:
            continue
