"""The console command: ``mmrazor-brecq TOOL ...`` runs a script of tools/.

Beside it, what the tools that quantize and evaluate have in common.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path
from typing import Any, Callable

from mmengine.config import DictAction

PACKAGE = Path(__file__).resolve().parent


def find_tools() -> dict[str, Path]:
    """Find the scripts that can be run.

    Returns:
        dict[str, Path]: Scripts by name, those of the installed package's
        ``.mim`` or, where it has none, of the checkout that it lies in.
    """
    for folder in (PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools'):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob('*.py'))}
    return {}


def main(argv: list[str] | None = None) -> None:
    """Run a tool with the arguments that follow its name.

    Args:
        argv (list[str], optional): The tool's name and its arguments; those
            of the process by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    tools = find_tools()
    choices = ', '.join(tools)
    parser = argparse.ArgumentParser(
        prog='mmrazor-brecq',
        usage='%(prog)s TOOL ...',
        description='Runs one of the tools: '
        f'{choices}. `%(prog)s TOOL --help` tells what it takes.',
    )
    parser.add_argument('tool', metavar='TOOL', nargs='?', help='its name')
    name = parser.parse_args(argv[:1]).tool
    if name not in tools:
        given = 'no tool given' if name is None else f'no such tool: {name!r}'
        parser.error(f'{given}, choose from {choices}')
    sys.argv = [str(tools[name]), *argv[1:]]
    runpy.run_path(sys.argv[0], run_name='__main__')


def tool_parser(
    doc: str | None, config: str, checkpoint: str | None = None
) -> Any:
    """The arguments that all tools take.

    Args:
        doc (str): What the tool does.
        config (str): What its config is.
        checkpoint (str, optional): What its checkpoint is, if it takes
            one.

    Returns:
        argparse.ArgumentParser: To be completed.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument('config', help=config)
    if checkpoint is not None:
        parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument('--work-dir', help='folder of everything written')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='changes to the config, such as model.quantization.weight.bits=3',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """What a tool that reads a float checkpoint takes, too."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load the checkpoint even if that can run code in it',
    )


def run_tool(
    args: argparse.Namespace,
    action: Callable[[], Any],
    after_interrupt: str = '',
) -> int:
    """Run what a tool does; a user's mistake ends in one line.

    Args:
        args (argparse.Namespace): Of :func:`tool_parser`.
        action (callable): Does it.
        after_interrupt (str): What to say after Ctrl-C.

    Returns:
        int: The exit status: 0, 1 after a mistake, 130 after Ctrl-C.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        action()
    except (ValueError, KeyError, OSError, ImportError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\nInterrupted{after_interrupt}', file=sys.stderr)
        return 130
    return 0
