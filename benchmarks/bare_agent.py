"""The least that can serve calls in a guest: the peer. Runs there as root, given its port and a stream's bytes."""

import os
import select
import socket
import subprocess
import sys

for name in os.listdir("/sys/class/virtio-ports"):  # noqa: PTH208
    with open(f"/sys/class/virtio-ports/{name}/name") as file:
        if file.read().strip() == sys.argv[1]:
            port = os.open(f"/dev/{name}", os.O_RDWR)
ours, theirs = socket.socketpair()
if os.fork() == 0:  # an echo that is a process of its own
    ours.close()
    while data := theirs.recv(4096):
        theirs.sendall(data)
    sys.exit()
while True:
    request = os.read(port, 4096)
    if request == b"true\n":
        pid = os.posix_spawn("/usr/bin/true", ["true"], os.environ)
        os.write(port, b"%d\n" % os.waitpid(pid, 0)[1])
    elif request.startswith(b"socket "):
        ours.sendall(request)
        os.write(port, ours.recv(4096))
    elif request == b"stream\n":
        block = bytes(32768)
        for _ in range(int(sys.argv[2]) // len(block)):
            os.write(port, block)
    elif request == b"program\n":  # the same, but what is sent comes from a program
        source = subprocess.Popen(["/usr/bin/head", "-c", sys.argv[2], "/dev/zero"], stdout=subprocess.PIPE)
        while source.stdout and (data := os.read(source.stdout.fileno(), 32768)):
            os.write(port, data)
        source.wait()
    elif request == b"sink\n":  # the other direction: nobody in the guest wants what comes
        os.write(port, b"go\n")
        pages, left = [bytearray(4096) for _ in range(64)], int(sys.argv[2])
        os.set_blocking(port, False)  # a blocking readv would wait until the last of its pages is full
        while left > 0:
            select.select([port], [], [])
            left -= os.readv(port, pages)
        os.set_blocking(port, True)
        os.write(port, b"done\n")
    elif request.startswith(b"files "):  # tar of a directory
        tar = ["/usr/bin/tar", "-C", request[6:].decode().strip(), "-cf", "-", "."]
        source = subprocess.Popen(tar, stdout=subprocess.PIPE)
        while source.stdout and (data := os.read(source.stdout.fileno(), 32768)):
            os.write(port, data)
        source.wait()
        os.write(port, b"done\n")
    else:
        os.write(port, request)
