"""The ``fi-cachestore`` command. Starts without torch; each command imports what it needs."""

from __future__ import annotations

import importlib
import sys

import click

from fi_cachestore import __version__
from fi_cachestore.cli.output import note, print_error
from fi_cachestore.errors import CacheStoreError

_HOMES = {
    "audit": "fi_cachestore.cli.audit",
    "demo": "fi_cachestore.cli.demo",
    "diff": "fi_cachestore.cli.records",
    "doctor": "fi_cachestore.cli.doctor",
    "env": "fi_cachestore.cli.environment",
    "ls": "fi_cachestore.cli.records",
    "pack": "fi_cachestore.cli.pack",
    "show": "fi_cachestore.cli.records",
    "trust": "fi_cachestore.cli.trust",
    "verify": "fi_cachestore.cli.verify",
    "why": "fi_cachestore.cli.why",
}

EXIT_CODES = """\b
Exit codes:
  0   fine
  1   findings: of an audit, damaged files, keys that differ, no such record or schema, a key that is not served, a problem on this host
  2   usage
  10  configuration: settings, a refused root
  11  input or output
  20  damaged data, a bundle that is not there
  21  a key that cannot be made, a call that a strictly pinned bundle lacks
  70  a fault of this program
"""


class LazyGroup(click.Group):
    """Commands that are imported when they are run; their help texts are kept here so that ``--help`` imports none."""

    summaries = {  # noqa: RUF012 - click's classes are plain
        "audit": "Report what FlashInfer's persisted keys miss, by reading source.",
        "demo": "Show the whole thing at work, in a directory of its own.",
        "diff": "Compare two records' keys, field by field.",
        "doctor": "Try out what sessions need on this host: root, locks, clock, meeting of ranks.",
        "env": "Show settings, where each came from, and the facets of the environment.",
        "ls": "List records.",
        "pack": "Put loose records into one file, or some into a bundle.",
        "show": "Show one record: its key in words, every tactic, who measured it.",
        "trust": "Show which key schemas are believed and why, and have your word count.",
        "verify": "Check every file of a root.",
        "why": "Say why a key is not served, what is nearest to it, and what to do.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        home = _HOMES.get(cmd_name)
        if home is None:
            return None
        command: click.Command = getattr(importlib.import_module(home), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summaries[name]) for name in sorted(_HOMES)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="fi-cachestore")
def cli() -> None:
    """Inspect and check a cache of FlashInfer's measured kernel choices."""


def main() -> None:
    """Run the command line, with the documented exit codes."""
    try:
        code = cli.main(standalone_mode=False)
    except CacheStoreError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        note("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)  # the reader of our output has seen enough
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
