"""Run a program that ends when our standard input does: whoever holds its other end is gone then.

    python -I leash.py PROGRAM [ARGUMENT...]

The exit code is the program's own. Imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

# How long the program may take to end in order.
_PATIENCE_SECONDS = 20


def main() -> None:
    # In the terminal's group it would be stopped beside us, and not after us.
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: program.send_signal(number))

    def end() -> None:
        while os.read(0, 4096):
            pass
        program.terminate()
        try:
            program.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=end, daemon=True).start()
    code = program.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
