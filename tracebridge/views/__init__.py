"""What people see of turns, in the terminal or as a page, and of tracebridge itself."""
