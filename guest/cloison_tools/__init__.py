"""The programs with which people in a qube call services elsewhere: qrexec-client-vm, qvm-copy, qvm-open-in-dvm...

In: command lines. Out: calls through the agent's unix socket. May import: the C modules of the standard library.

They start for every call, and starting is most of what they do: ``cloison.wire`` and the friendly half of the standard
library (os, socket, json, typing...) would triple the time. So they speak to their own agent, whom they trust, with the
sixty lines of ``leg``; a test holds it against ``cloison.wire``.

Converters and split services (``convertpdf``, ``rendering``, ``gpgclient``, ``gpgserver``, ``sshagent``...) run longer
than that costs, and take what they need of the standard library.
"""
