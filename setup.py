"""Metadata, and the ``.mim`` folder in which mim and mmengine look for us."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build import build

PACKAGE = 'mmrazor_brecq'
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildMim(Command):
    """Puts what lies beside the package into its ``.mim`` folder.

    Real copies in a wheel; for an editable install, links in the checkout,
    so that an edited config counts at once. setuptools sets `editable_mode`
    and asks for the three lists below (see its ``SubCommand`` protocol).
    """

    user_options: list = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options('build_py', ('build_lib', 'build_lib'))

    def run(self) -> None:
        root = '' if self.editable_mode else self.build_lib
        mim = Path(root, PACKAGE, '.mim')
        shutil.rmtree(mim, ignore_errors=True)
        if self.editable_mode:
            mim.mkdir()
            for name in MIM_CONTENT:
                (mim / name).symlink_to(Path('..', '..', name))
            return
        for target, source in self.get_output_mapping().items():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        files = [
            file
            for name in MIM_CONTENT
            for file in (Path(name), *sorted(Path(name).rglob('*')))
        ]
        return [
            str(file)
            for file in files
            if file.is_file() and '__pycache__' not in file.parts
        ]

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def get_output_mapping(self) -> dict[str, str]:
        mim = os.path.join(self.build_lib, PACKAGE, '.mim')
        return {os.path.join(mim, f): f for f in self.get_source_files()}


build.sub_commands.append(('build_mim', None))

mmengine = ['mmengine>=0.10.1,<1.0']
mmcv_lite = [*mmengine, 'mmcv-lite>=2.0.1,<2.2']
lite = [*mmengine, 'mmcv-lite>=2.0.1,<2.1', 'mmcls==1.0.0rc6']
mmpretrain = [*mmcv_lite, 'mmpretrain>=1.2,<1.3']
# mmdet and mmsegmentation beside mmcv-lite: see mmrazor_brecq/mmcv_ext.py.
detection = [*mmcv_lite, 'mmdet==3.3.0']
segmentation = [*mmcv_lite, 'mmsegmentation==1.2.2', 'ftfy', 'regex']
# The maintained line, under the same import names. It needs an mmcv too, which
# users choose: see docs/reference/versions.md.
onedl = ['onedl-mmengine>=0.10.8,<1.0', 'onedl-mmpretrain>=1.3']
search = ['scipy>=1.9']
# ONNX Runtime has left Python 3.9 behind.
export = ['onnx', 'onnxscript', 'onnx-ir', 'safetensors']
export += ['onnxruntime>=1.22; python_version >= "3.10"']
openvino = ['openvino', 'nncf']
report = ['matplotlib']
docs = ['sphinx>=7', 'furo', 'myst-parser>=3']
notebooks = ['nbclient', 'nbformat', 'ipykernel']
# The tests of the export run in OpenVINO as well; nncf only the benchmark.
dev = ['ruff', 'mypy', 'pytest', 'pytest-xdist', 'openvino']
dev += [*search, *export, *report, *docs, *notebooks]

setup(
    name=PACKAGE,
    version=runpy.run_path(f'{PACKAGE}/version.py')['__version__'],
    description='Post-training quantization of OpenMMLab models with BRECQ',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The mmrazor_brecq authors',
    project_urls={
        'Paper': 'https://arxiv.org/abs/2102.05426',
        'Related project': 'https://github.com/open-mmlab/mmrazor',
    },
    keywords='quantization, post-training quantization, BRECQ, OpenMMLab',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed', 'report/*.jinja', 'targets/*.yaml']},
    cmdclass={'build_mim': BuildMim},
    entry_points={'console_scripts': [f'mmrazor-brecq = {PACKAGE}.cli:main']},
    python_requires='>=3.9',
    # mmengine and onedl-mmengine own the same `import mmengine`, and there are
    # four of `import mmcv`: an extra brings one of each, and
    # `mmrazor_brecq/_requirements.py` checks the one that is there.
    install_requires=[
        'torch>=2.4',
        'torchvision',
        'numpy',
        'greenlet',
        'jinja2',
        'pillow',
        'psutil',
        'pydantic>=2',
        'rich',
        # mmengine needs pkg_resources, which setuptools 82 dropped.
        'setuptools>=77.0.3,<82',
    ],
    extras_require={
        'lite': lite,
        'dev': dev,
        'search': search,
        'mmengine': mmengine,
        'mmpretrain': mmpretrain,
        'detection': detection,
        'segmentation': segmentation,
        'onedl': onedl,
        'export': export,
        'openvino': openvino,
        'report': report,
        'docs': docs,
        'all': lite + dev + search + export + openvino + report,
    },
    zip_safe=False,
)
