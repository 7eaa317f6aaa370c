"""Where gateway calls come from: our own gateway, and one module per other source.

Our own gateway (`proxy`) is a byte path with a copy beside it: `upstream` says where a request
goes, `framing` where a message ends, `outward` what is added, `forwarding` moves the bytes, `recorder`
makes `GatewayCall`s of the copy. On the same port, `otlp` takes what agents export about themselves.
Who may use it: `client_keys` is the file, `access` the check, `spending` and `limits` how much of it,
`reloading` keeps them in force. `figures` is what it says of itself, `engine` what may run behind it.
"""
