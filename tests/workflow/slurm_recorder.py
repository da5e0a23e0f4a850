"""Stands in for Slurm's commands, by the name that it is called by.

As sbatch it notes its arguments and puts the results of an earlier run in place.

Environment: RECORD, the file of the notes (one JSON list a line); SAVED, the results/ of the earlier run.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    record = Path(os.environ["RECORD"])
    calls = record.read_text().splitlines() if record.exists() else []
    command = Path(sys.argv[0]).name
    if command == "sbatch":
        with open(record, "a") as file:
            file.write(json.dumps(sys.argv[1:]) + "\n")
        shutil.copytree(os.environ["SAVED"], "results", copy_function=once, dirs_exist_ok=True)
        print(f"{len(calls) + 1}")
    elif command == "squeue":
        print("".join(f"{number}|COMPLETED\n" for number in range(1, len(calls) + 1)), end="")
    elif command == "scontrol":
        print("MinJobAge               = 300 sec")
    elif command == "sacctmgr":
        print("cluster")


def once(source: str, target: str) -> None:
    if not os.path.exists(target):
        shutil.copy(source, target)


if __name__ == "__main__":
    main()
