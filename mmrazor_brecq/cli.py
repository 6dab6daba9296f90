"""The console command, ``mmrazor-brecq TOOL ...``, and what tools share."""

from __future__ import annotations

import argparse
import ast
import difflib
import logging
import os
import os.path as osp
import re
import runpy
import sys
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction

from . import _interrupt, _terminal
from .config.load import FILES, check_data, load_config
from .config.read import is_user_error
from .config.recipe import NO_EVAL_CURE, NO_EVALUATION, Recipe
from .targets import find_target
from .validation import ImageCount, Natural, option
from .version import __version__

PACKAGE = Path(__file__).resolve().parent
#: Options of tools that do without the images of a data loader: the loader's
#: key, and what the option does.
CURES = dict(
    no_eval=('test_dataloader', NO_EVAL_CURE),
    no_verify=('test_dataloader', 'add --no-verify to export without proof'),
    recipe=(
        'test_cfg.calibration.dataloader',
        'name a folder of images with --calibration',
    ),
)
#: The command that runs a tool, '' where its script is run itself.
_COMMAND: ContextVar[str] = ContextVar('_COMMAND', default='')


def find_tools() -> dict[str, Path]:
    """Find the scripts that can be run.

    Returns:
        dict[str, Path]: Scripts by name: those in the installed package's
        ``.mim`` folder, or else in the checkout that contains the package.
    """
    for folder in (PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools'):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob('*.py'))}
    return {}


class ToolHelp(argparse.RawDescriptionHelpFormatter):
    """Help that shows the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        default = action.default
        if (
            not action.option_strings
            or 'default' in text
            or default in (argparse.SUPPRESS, [], None)
            or default is False  # Not 0, which equals it.
        ):
            return text
        return f'{text} (default: %(default)s)'.lstrip()


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
        description=f'Run one of the tools: {", ".join(tools)}.\n'
        '`%(prog)s TOOL --help` lists its options.',
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
    token = _COMMAND.set(f'{parser.prog} {name}')
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    finally:
        _COMMAND.reset(token)


def _first_line(path: Path) -> str:
    """Return the first line of a tool's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ''
    return doc.partition('\n')[0]


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--version', action='version', version=f'mmrazor_brecq {__version__}'
    )


class CfgOptions(DictAction):
    """Options ``KEY=VALUE`` as in mmengine, whose values may be dicts.

    Dicts are written as in Python: ``{'head.fc': 4}`` or ``dict(bits=4)``.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        """Add the options to those given before.

        Raises:
            argparse.ArgumentError: If an option has another form.
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
    """Replaces ``dict(a=1)`` by ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names: list[Any] = [ast.Constant(k.arg) for k in node.keywords]
        plain = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        if not plain or node.args:
            return node
        return ast.Dict(names, [k.value for k in node.keywords])


def tool_parser(
    doc: str | None, config: str, checkpoint: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all tools take.

    Args:
        doc (str): Description of the tool.
        config (str): Description of its config.
        checkpoint (str, optional): Description of its checkpoint, if it
            takes one.

    Returns:
        argparse.ArgumentParser: The tool adds its own options.
    """
    parser = argparse.ArgumentParser(
        prog=_COMMAND.get() or None, description=doc, formatter_class=ToolHelp
    )
    parser.add_argument(
        'config',
        help=f'{config}: a file, or PACKAGE::PATH as `_base_` takes it, such '
        'as mmrazor_brecq::brecq/resnet/NAME.py',
    )
    if checkpoint is not None:
        parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument(
        '--work-dir',
        help='folder for all output (default: `work_dir` of the '
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
        help='what started the processes, if there are several',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=option(Natural),
        default=0,
        help='rank of the process on this machine; launchers set it',
    )
    shown = parser.add_mutually_exclusive_group()
    for flag, level, text in (
        ('--quiet', _terminal.QUIET, 'show warnings and errors alone'),
        ('--verbose', _terminal.VERBOSE, 'show environment and config, too'),
    ):
        shown.add_argument(
            flag,
            dest='terminal',
            action='store_const',
            const=level,
            help=f'{text}; the log file has everything',
        )
    _add_version(parser)
    return parser


def config_of(args: argparse.Namespace, *loaders: str) -> Config:
    """Read the config that the user named, and check the files it needs.

    Missing files are reported here, before torch is imported and before
    anything is written.

    Args:
        args (argparse.Namespace): Arguments of :func:`tool_parser`.
        *loaders (str): Keys of the data loaders that will be read.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        KeyError, ValueError: If the config is invalid; see
            :func:`load_config`.
    """
    recipe = recipe_of(args) if 'recipe' in args else None
    options = args.cfg_options
    if recipe is None and getattr(args, 'no_eval', False):
        options = {**(options or {}), **NO_EVALUATION}
    cfg = load_config(
        args.config, options, args.work_dir, args.launcher, recipe
    )
    if getattr(args, 'device', None) is not None:
        cfg.model['target'] = find_target(args.device)
    try:
        _check_files(cfg, args, loaders)
    except FileNotFoundError:
        # A mistaken key may be the reason. To find it imports torch, which
        # the paths of files are not worth.
        if any(k.split('.')[-1] not in FILES for k in args.cfg_options or ()):
            from .engine.mistakes import check_options

            check_options(cfg, args.cfg_options)
        raise
    return cfg


def _check_files(
    cfg: Config, args: argparse.Namespace, loaders: Sequence[str]
) -> None:
    """Check that the checkpoint and the data sets of a config exist."""
    checkpoint = getattr(args, 'checkpoint', None)
    if checkpoint is not None and not osp.isfile(checkpoint):
        folder = ', which is a folder' if osp.isdir(checkpoint) else ''
        raise FileNotFoundError(f'No checkpoint at {checkpoint!r}{folder}')
    cures = dict(
        cure
        for option, cure in CURES.items()
        if getattr(args, option, None) is not None
    )
    check_data(cfg, loaders, cures)


def add_target_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of tools that keep to what a device allows."""
    parser.add_argument(
        '--target',
        dest='device',
        metavar='NAME_OR_FILE',
        help='the device that it is for: onnxruntime, openvino, tensorrt, '
        'example-npu, one of your own, or a YAML file; what it cannot do is '
        'refused, or adapted where there is one choice (default: '
        '`model.target` of the config)',
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of tools that read float checkpoints."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load the checkpoint even if it may run code',
    )


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that quantize the model of a float config."""
    group = parser.add_argument_group('for a float config')
    group.add_argument(
        '--recipe',
        metavar='BITS',
        help='quantize the model of a float config: w8a8, w4a8, w4a4, w2a4 '
        'and others in configs/_base_/bits, or a file that defines `bits`',
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
        help=f'calibration images, at most; default: {Recipe.num_images}',
    )
    group.add_argument(
        '--no-eval',
        action='store_true',
        help='quantize without measuring the accuracy: no test images needed',
    )


def recipe_of(args: argparse.Namespace) -> Optional[Recipe]:
    """Return the recipe that the options name, if they name one.

    Raises:
        ValueError: If an option belongs to a recipe and ``--recipe`` is
            missing.
    """
    names = 'schedule', 'calibration', 'num_images'
    given = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.recipe is not None:
        return Recipe(args.recipe, evaluate=not args.no_eval, **given)
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
    """Run a tool's action, and print a user's mistake in one line.

    Errors that this package or mmengine raises count as such. Others, for
    example from a user's own objective, are raised with their traceback.

    Args:
        args (argparse.Namespace): Arguments of :func:`tool_parser`.
        action (callable): The work of the tool.
        after_interrupt (str): How to continue after Ctrl-C.

    Returns:
        int: The exit status: 0, 1 after a mistake, 130 after Ctrl-C.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # Large tensors in large pages: those of 4 kB take a fifth of the time of
    # a run at 224 pixels. Torch looks at it when it makes its first tensor.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    # mmcv recommends a package without wheels for most versions of torch.
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformable')
    # The number of workers is that of somebody else's config.
    warnings.filterwarnings('ignore', 'This DataLoader will create')
    # Where torch finds a compiler of an accelerator and no accelerator.
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    level = _terminal.LEVEL.set(args.terminal or _terminal.NORMAL)
    try:
        with _interrupt.working(after_interrupt):
            action()
    except KeyboardInterrupt:
        _interrupt.print_hint()
        return _interrupt.STATUS
    except Exception as error:
        if _interrupt.was_interrupted():
            _interrupt.print_hint()
            return _interrupt.STATUS
        if not isinstance(error, OSError) and not is_user_error(
            error, '__main__'
        ):
            raise
        words = error.args[0] if isinstance(error, KeyError) else error
        print(f'{type(error).__name__}: {words}', file=sys.stderr)
        return 1
    finally:
        _terminal.LEVEL.reset(level)
    return 0
