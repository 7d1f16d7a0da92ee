"""The command line: `python -m localcluster up|down|status|kubeconfig|binaries|kill|restart|...`, from the root.

Python's standard library is enough. Verbs come from `verbs.py` and from the modules named in `components.EXTENSIONS`.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from localcluster.components import Cluster, Verb, load_extensions
from localcluster.engine import choose_engine
from localcluster.errors import ClusterError
from localcluster.layout import layout_from
from localcluster.report import Report
from localcluster.verbs import VERBS


def parser_for(verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m localcluster", description="A real Kubernetes on this machine.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in verbs:
        subparser = subparsers.add_parser(verb.name, help=verb.help, description=verb.help)
        subparser.set_defaults(run=verb.run)
        verb.configure(subparser)
    return parser


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs one verb. Errors that the user can mend become one line on stderr and exit code 1."""
    try:
        options = parser_for((*VERBS, *load_extensions().verbs)).parse_args(arguments)
        layout = layout_from(environment, Path.home())
        cluster = Cluster(layout, choose_engine(environment), environment, Report())
        code: int = options.run(cluster, options)
        return code
    except ClusterError as error:
        print(f"localcluster: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            print(
                "localcluster: The disk is full; free some space, and the same command goes on from here.",
                file=sys.stderr,
            )
            return 1
        if error.errno == errno.EPIPE:
            return 1  # whoever read our output has stopped
        raise
    except KeyboardInterrupt:
        print("localcluster: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
