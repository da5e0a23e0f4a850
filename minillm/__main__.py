import io
import os
import sys

from minillm.cli import main


def run() -> int:
    """Run the command line and return its exit status."""
    # A terminal or log in another encoding shows escapes; a name in a message never ends a stage.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except KeyboardInterrupt:
        print("minillm: interrupted; the same command resumes from what is saved", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0


if __name__ == "__main__":
    status = run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from minillm.runtime.processes import leave

        leave(status)
    sys.exit(status)
