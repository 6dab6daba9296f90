"""The console command: ``mmrazor-brecq TOOL ...`` runs a script of tools/."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

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
