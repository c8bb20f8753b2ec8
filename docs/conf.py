"""Configuration of Sphinx; the package must be installed.

pip install ".[docs]"
sphinx-build -W --keep-going -b html docs build/html
"""

import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import fastnorm

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "fastnorm"
author = "the fastnorm developers"
copyright = author
version = release = fastnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "command_help",
]

# What stands in single backticks in a docstring is an object, if there is one of that name.
default_role = "py:obj"
autodoc_typehints = "none"  # the docstrings have them in words
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_param = False  # arguments that share a description stay together
napoleon_use_rtype = False

# Pages are Markdown that a code host shows as well: mathematics between dollars, links to files.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_ext"]


def _is_there(inventory):
    """Whether an inventory can be fetched: without a network the links to it are left out."""
    try:
        with urlopen(Request(inventory, method="HEAD"), timeout=5):
            return True
    except (URLError, TimeoutError):
        return False


intersphinx_mapping = {
    name: (site, None)
    for name, site in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
    }.items()
    if _is_there(f"{site}objects.inv")
}

html_theme = "furo"
html_title = "fastnorm"
