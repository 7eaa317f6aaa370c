"""One OpenTelemetry trace per turn of a CLI coding agent, the LLM gateway's calls underneath."""
