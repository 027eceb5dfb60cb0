"""The one door: admission of calls, the jailed relays that carry them, and the record of what passed.

In: frames from agents and host clients. Out: joined calls, or refusals, and audit lines. May import: wire, model,
policy, errors, layout. Two halves that never share a process: ``zygote``, ``relay``, ``switch`` and ``seccomp`` run
jailed (standard library and wire only); everything else runs in the daemon.
"""
