"""Put the payload an agent gives a hook into the spool; start a watcher if none lives.

    /absolute/python -I -S /absolute/tracebridge_hook.py AGENT [HOME]

Whatever happens it prints nothing and exits 0. The work is done by the module next to it, because
Python compiles the file it is given at every run, and that took a fifth of the hook's time; of a
module it keeps the compiled form.
"""

import sys

try:
    sys.path.insert(0, __file__.rpartition("/")[0])
    try:
        import tracebridge_hook_main
    except Exception:
        # The compiled form may be damaged, after a power cut for example. The source is still good.
        sys.pycache_prefix = "/dev/null"
        import tracebridge_hook_main
    tracebridge_hook_main.run()
except BaseException:
    pass
