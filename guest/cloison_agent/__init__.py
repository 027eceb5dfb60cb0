"""The agent and the tools inside a qube.

In: the host's requests on a virtio-serial port, local programs' calls on a unix socket. Out: running services. May
import: the standard library and ``cloison.wire``.

One process, one thread, one epoll: under software emulation every system call and every line of Python is dear, so the
agent blocks until something happens, imports everything at start, and a call costs one fork and one exec.
"""
