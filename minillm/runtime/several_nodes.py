"""torchrun on one node of several: the same arguments, and one line if the other nodes do not come.

`python -m minillm.runtime.several_nodes ARGUMENTS` stands for `torchrun ARGUMENTS`.  How long it waits
is torchrun's `--rdzv-conf=join_timeout=SECONDS` (workflow/scripts/per_node.sh).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from minillm.runtime.processes import host

MISSED = (RendezvousClosedError, RendezvousConnectionError, RendezvousTimeoutError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; 2 after one line on stderr if the nodes did not meet, else 0 or torchrun's exception."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run.main(given)
    except MISSED as error:
        wanted = run.get_args_parser().parse_args(given)
        print(
            f"minillm: error: {host()}: the {wanted.nnodes} nodes of the job did not all meet at "
            f"{wanted.rdzv_endpoint} in time ({type(error).__name__}); this log says what became of the "
            "others, sinfo whether they are up; the next attempt resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
