"""Where gateway calls come from: our own gateway, and one module per other source.

Our own gateway (`proxy`) is a byte path with a copy beside it: `upstream` says where a request
goes, `framing` where a message ends, `forwarding` moves the bytes, `recorder` makes `GatewayCall`s of
the copy. On the same port, `otlp` takes what agents export about themselves.
"""
