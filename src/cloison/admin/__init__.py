"""The Admin API: requests in, answers out, one row per method.

In: bytes from the private socket, or calls from qubes that the broker let through. Out: bytes that Qubes clients read.
May import: wire, model, errors, the engine's verbs. Nothing here decides who may call: for the socket that is the
user, for qubes the policy has spoken before.
"""
