"""The fixed paths that programs written for Qubes OS know, made to lead to this system.

In: a layout. Out: what stands at which path, a private mount namespace with it, or the same on the whole host.
May import: client, wire, layout, errors.

The stock client library has no setting for any of them (Admin API notes, sections 1.1 and 1.7 to 1.9): the socket, the
host's RPC client program, two import services, a file that says "this is dom0", a group, and a few helper programs.
"""
