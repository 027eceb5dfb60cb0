# With the service split-ssh, the keys of another qube are this one's.
if [ -e /run/qubes-service/split-ssh ] && [ -z "$SSH_AUTH_SOCK" ]; then
    export SSH_AUTH_SOCK=/run/cloison-split-ssh
fi
