"""The console command: ``mmrazor-brecq TOOL ...`` runs a script of tools/.

Beside it, what the tools that quantize and evaluate have in common.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import os.path as osp
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction

from . import _interrupt
from .config.load import check_data, load_config
from .config.read import is_user_error
from .config.recipe import Recipe
from .validation import ImageCount, Natural, option
from .version import __version__

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


class ToolHelp(argparse.RawDescriptionHelpFormatter):
    """Help with the defaults of all options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        default = action.default
        said = 'default' in text or default in (argparse.SUPPRESS, [])
        if action.option_strings and not (
            said or default is None or default is False
        ):
            text += f'{" " * bool(text)}(default: %(default)s)'
        return text


def main(argv: list[str] | None = None) -> None:
    """Run a tool with the arguments that follow its name.

    Args:
        argv (list[str], optional): The tool's name and its arguments; those
            of the process by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    tools = find_tools()
    width = max(map(len, tools), default=0)
    parser = argparse.ArgumentParser(
        prog='mmrazor-brecq',
        usage='%(prog)s TOOL ...',
        description='Runs one of the tools: '
        f'{", ".join(tools)}.\n`%(prog)s TOOL --help` tells what it takes.',
        epilog='\n'.join(
            f'  {name:{width}}  {_first_line(path)}'
            for name, path in tools.items()
        ),
        formatter_class=ToolHelp,
    )
    parser.add_argument('tool', metavar='TOOL', nargs='?', help='its name')
    _add_version(parser)
    name = parser.parse_args(argv[:1]).tool
    if name not in tools:
        given = 'no tool given' if name is None else f'no such tool: {name!r}'
        close = difflib.get_close_matches(name or '', tools, 1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        parser.error(f'{given}, choose from {", ".join(tools)}{hint}')
    sys.argv = [str(tools[name]), *argv[1:]]
    runpy.run_path(sys.argv[0], run_name='__main__')


def _first_line(path: Path) -> str:
    """Return what a tool says about itself."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ''
    return doc.partition('\n')[0]


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--version', action='version', version=f'mmrazor_brecq {__version__}'
    )


class CfgOptions(DictAction):
    """mmengine's ``KEY=VALUE``, and dicts of any depth for values.

    They are written as in Python: ``{'head.fc': 4}`` or ``dict(bits=4)``.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        """Add the options to those that are there.

        Raises:
            argparse.ArgumentError: If one is not of that form.
        """
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values:
            key, equals, value = pair.partition('=')
            if not equals:
                raise argparse.ArgumentError(
                    self, f'{pair!r}, expected KEY=VALUE'
                )
            if re.match(r'[\s\[(]*(\{|dict\()', value):
                options[key] = self._python(key, value)
            else:
                options[key] = self._parse_iterable(value)
        setattr(namespace, self.dest, options)

    def _python(self, key: str, value: str) -> Any:
        try:
            tree = ast.parse(value.strip(), mode='eval')
            return ast.literal_eval(_Dicts().visit(tree))
        except (SyntaxError, ValueError) as error:
            raise argparse.ArgumentError(
                self,
                f'{key}={value}, expected a value as in Python, such as '
                "{'head.fc': 4} or dict(bits=4)",
            ) from error


class _Dicts(ast.NodeTransformer):
    """Puts ``{'a': 1}`` where it says ``dict(a=1)``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names: list[Any] = [ast.Constant(k.arg) for k in node.keywords]
        plain = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        if not plain or node.args:
            return node
        return ast.Dict(names, [k.value for k in node.keywords])


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
    parser = argparse.ArgumentParser(description=doc, formatter_class=ToolHelp)
    parser.add_argument(
        'config',
        help=f'{config}: a file, or PACKAGE::PATH as `_base_` takes it, such '
        'as mmrazor_brecq::brecq/resnet/NAME.py',
    )
    if checkpoint is not None:
        parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument(
        '--work-dir',
        help='folder of everything written (default: `work_dir` of the '
        'config, else work_dirs/NAME_OF_THE_CONFIG)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='changes to the config, such as model.quantization.weight.bits=3',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes, where there are several',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=option(Natural),
        default=0,
        help='number of the process on this machine; launchers set it',
    )
    _add_version(parser)
    return parser


def config_of(args: argparse.Namespace, *loaders: str) -> Config:
    """Read the config that was asked for, and find what it needs.

    Whatever can be known to be missing is told here, before torch is
    imported and before anything is written.

    Args:
        args (argparse.Namespace): Of :func:`tool_parser`.
        *loaders (str): Keys of the data loaders that will be read.

    Raises:
        FileNotFoundError: If a file or folder is not there.
        KeyError, ValueError: If the config is none, as for
            :func:`load_config`.
    """
    cfg = load_config(
        args.config,
        args.cfg_options,
        args.work_dir,
        args.launcher,
        recipe_of(args) if 'recipe' in args else None,
    )
    checkpoint = getattr(args, 'checkpoint', None)
    if checkpoint is not None and not osp.isfile(checkpoint):
        raise FileNotFoundError(
            f'No checkpoint at {checkpoint!r}'
            + osp.isdir(checkpoint) * ', which is a folder'
        )
    check_data(cfg, loaders)
    return cfg


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """What a tool that reads a float checkpoint takes, too."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load the checkpoint even if that can run code in it',
    )


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add what composes a quantization onto a float config."""
    group = parser.add_argument_group('for a float config')
    group.add_argument(
        '--recipe',
        metavar='BITS',
        help='quantize the model of a float config: w8a8, w4a8, w4a4, w2a4 '
        'and others of configs/_base_/bits, or a file that defines `bits`',
    )
    group.add_argument(
        '--schedule',
        help='fast, default or best, or a file that defines `schedule`; '
        f'default: {Recipe.schedule}',
    )
    group.add_argument(
        '--calibration',
        metavar='PATH',
        help='a folder of images, or a list of them (text or COCO JSON); '
        "default: the training images of the config's own data set",
    )
    group.add_argument(
        '--num-images',
        type=option(ImageCount),
        help=f'calibration images at most; default: {Recipe.num_images}',
    )


def recipe_of(args: argparse.Namespace) -> Optional[Recipe]:
    """Return the recipe that was asked for, if one was.

    Raises:
        ValueError: If there is none for other options of it to change.
    """
    names = 'schedule', 'calibration', 'num_images'
    given = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.recipe is not None:
        return Recipe(args.recipe, **given)
    if given:
        option = '--' + next(iter(given)).replace('_', '-')
        raise ValueError(
            f'{option} belongs to --recipe: without it, change the config '
            'with --cfg-options'
        )
    return None


def run_tool(
    args: argparse.Namespace,
    action: Callable[[], Any],
    after_interrupt: str = '',
) -> int:
    """Run what a tool does; a user's mistake ends in one line.

    It is one where this package or mmengine says so. An error from
    elsewhere, such as the code of an objective of one's own, is raised, for
    its place matters.

    Args:
        args (argparse.Namespace): Of :func:`tool_parser`.
        action (callable): Does it.
        after_interrupt (str): How to go on after Ctrl-C.

    Returns:
        int: The exit status: 0, 1 after a mistake, 130 after Ctrl-C.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # It advises a package that has no wheel for most versions of torch.
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformable')
    try:
        with _interrupt.working(after_interrupt):
            action()
    except KeyboardInterrupt:
        _interrupt.tell()
        return _interrupt.STATUS
    except Exception as error:
        if _interrupt.happened():
            _interrupt.tell()
            return _interrupt.STATUS
        if not isinstance(error, OSError) and not is_user_error(
            error, '__main__'
        ):
            raise
        words = error.args[0] if isinstance(error, KeyError) else error
        print(f'{type(error).__name__}: {words}', file=sys.stderr)
        return 1
    return 0
