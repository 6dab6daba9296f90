"""Elementwise math in one pass over memory, where a compiler is available.

A chain of small operations reads and writes memory once for each of them.
``torch.compile`` makes one kernel of the chain, for all sizes. Compiled
kernels are cached on disk through interfaces of torch that may change; where
they have, kernels are compiled anew in each process. Without a compiler, or
with ``TORCH_COMPILE_DISABLE=1``, the plain function runs.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

import torch
from mmengine.logging import print_log
from torch import Tensor

from .function_modes import put_aside


def is_traced() -> bool:
    """Return whether a tracer records the computation.

    ``torch.jit.trace``, ``torch.export`` and ``torch.compile`` want plain
    operators: neither compiled ones, nor functions with their own gradient.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class Kernel:
    """A function of tensors that runs as one kernel, without gradients.

    It is compiled once for each kind of arguments: their types, which are
    None, which dimensions are 1. Compiled versions are cached on disk, in
    the compiler's own folder (``TORCHINDUCTOR_CACHE_DIR``): to trace and
    compile takes a quarter of a second or more, to load a fiftieth of one.

    Args:
        function (callable): Takes tensors and constants.

    Example:
        >>> @Kernel
        ... def squared_error(x, y):
        ...     return (x - y).square().mean()
    """

    #: Whether functions run uncompiled.
    plain = os.environ.get('TORCH_COMPILE_DISABLE') == '1'

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        #: Versions by the exact sizes of their arguments.
        self.fitting: dict[tuple, Callable] = {}
        #: Versions compiled so far, by number of threads.
        self.versions: dict[int, list[Any]] = {}
        #: The compiler's own dispatcher, where versions cannot be cached.
        self.compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.plain or is_traced():
            return self.function(*args)
        # Parameters, views and tensors that require gradients would each be
        # compiled anew.
        args = tuple(x.data if isinstance(x, Tensor) else x for x in args)
        # Checking whether a version fits takes longer than running it.
        key = (torch.get_num_threads(), *map(_sizes, args))
        run = self.fitting.get(key)
        return run(*args) if run else self._first(args, key)

    def _first(self, args: tuple, key: tuple) -> Any:
        """Find or compile a version that fits, and run it."""
        try:
            # The compiler would look into function modes, too.
            with put_aside():
                run = self._version(args, key)
                out = run(*args)
        except Exception as error:
            # Errors of the function itself are raised here.
            out = self.function(*args)
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
        _say_once(
            'Compiles kernels, which takes up to half a minute, once on this '
            'machine'
        )
        compiled: Any = torch.compile(
            self.function, dynamic=True, fullgraph=True
        )
        try:
            with _no_accelerator_warning():
                version = compiled.aot_compile((args, {}))
        except Exception:  # An older torch, or a device without support.
            self.compiled = compiled
            return compiled
        versions.append(version)
        name = f'{self.function.__qualname__}-{_digest(repr(key))}'
        with suppress(Exception):  # The next process then compiles it anew.
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f'{os.getpid()}.tmp'
            version.save_compiled_function(str(part))
            part.replace(folder / name)  # Others may be reading.
        return version.fn


def _sizes(x: Any) -> Any:
    """Return all properties of an argument that a version depends on."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device
    return type(x), x


#: Reasons that a warning was given for in this process, and what was said.
_warned: set[str] = set()


def _warn_once(reason: str, message: str) -> None:
    """Warn, unless a warning was given for the same reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(message, stacklevel=4)


def _say_once(message: str) -> None:
    """Log a message, unless it was logged in this process."""
    if message not in _warned:
        _warned.add(message)
        print_log(message, 'current')


def _compiler() -> bool:
    """Return whether there is a compiler, and warn if not."""
    compiler = os.environ.get('CXX', 'g++')
    if not (shutil.which(compiler) or torch.cuda.is_available()):
        _warn_once(
            compiler,
            f'There is no {compiler}: functions run uncompiled, and slower. '
            'Install it, or name another compiler in CXX',
        )
        return False
    return True


@contextmanager
def _no_accelerator_warning() -> Iterator[None]:
    """Silence a warning that every machine without accelerator gives."""
    logger = logging.getLogger('torch.utils.cpp_extension')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _folder(threads: int, source: str) -> Path:
    """Return the cache folder of a source file's functions.

    Args:
        threads (int): Number of threads that they were compiled for.
        source (str): Path of the source file.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cpu = torch.backends.cpu.get_cpu_capability()
    versions = torch.__version__, platform.python_version(), cpu, threads
    sources = sorted(Path(source).parent.glob('*.py'))
    state = _digest(repr(versions), *(path.read_text() for path in sources))
    return Path(cache_dir(), 'mmrazor_brecq', state)


def _digest(*texts: str) -> str:
    return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:16]


def _loaded(folder: Path, function: Callable) -> Iterator[Any]:
    """Yield the versions on disk, except damaged ones."""
    for path in sorted(folder.glob(f'{function.__qualname__}-*')):
        try:
            with path.open('rb') as file:
                yield torch.compiler.load_compiled_function(
                    file, f_globals=function.__globals__
                )
        except Exception:
            continue
