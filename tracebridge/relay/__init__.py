"""The central mode: OTLP in, each span to its place in a turn's trace, OTLP out.

What watchers send is final and passes byte for byte. Spans of other gateways are scrubbed and put
under the turn that they belong to: by the keys that they carry, with no help, else by what the
replicas know together.
"""
