"""Builds the documentation site: `make docs`, offline."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = 'mmrazor_brecq'
author = 'The mmrazor_brecq authors'
copyright = author
release = runpy.run_path(str(ROOT / project / 'version.py'))['__version__']

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']

myst_heading_anchors = 4

autodoc_typehints = 'none'  # Docstrings have types, and say more.
autodoc_member_order = 'bysource'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = project
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_sphinx = False
html_copy_source = False
