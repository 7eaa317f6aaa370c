"""What tests need: ours, and those of whoever builds on tracebridge."""
