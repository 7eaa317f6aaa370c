"""What people type; `tracebridge.cli` loads the module of the command that is asked for.

What a command needs of ours is imported inside it: its `--help` should not wait for SQLite.
"""
