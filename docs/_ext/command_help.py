"""The directive ``command-help``: what a subcommand of ``fastnorm`` says about itself."""

import os

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from fastnorm._cli import parser


class CommandHelp(SphinxDirective):
    """The usage of the subcommand that is named, or of the command itself."""

    optional_arguments = 1

    def run(self):
        os.environ.update(COLUMNS="80", NO_COLOR="1")  # to the width of a page
        command = parser()
        for name in self.arguments:
            (subcommands,) = (a for a in command._actions if a.choices)
            command = subcommands.choices[name]
        text = command.format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
