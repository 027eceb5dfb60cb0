"""The least that can serve calls in a guest: the peer. Runs there as root, given the name of its port."""

import os
import sys

for name in os.listdir("/sys/class/virtio-ports"):  # noqa: PTH208
    with open(f"/sys/class/virtio-ports/{name}/name") as file:
        if file.read().strip() == sys.argv[1]:
            port = os.open(f"/dev/{name}", os.O_RDWR)
while True:
    request = os.read(port, 4096)
    if request == b"true\n":
        pid = os.posix_spawn("/usr/bin/true", ["true"], os.environ)
        os.write(port, b"%d\n" % os.waitpid(pid, 0)[1])
    elif request == b"stream\n":
        block = bytes(32768)
        for _ in range(int(sys.argv[2]) // len(block)):
            os.write(port, block)
    else:
        os.write(port, request)
