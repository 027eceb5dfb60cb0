# Sourced by ./quickstart and ./test: from a fresh Debian or Ubuntu to a working .venv, in no time when all is there.
# In: the repository's directory in $top. Out: $python, an interpreter with Cloison and its libraries.
# shellcheck shell=bash

export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
PATH=$PATH:/usr/sbin:/sbin # ordinary users of Debian do not have these, and mkfs.ext4 lives there

# What must exist on the host, and the Debian package that brings it.
needed_programs=(
    qemu-system-x86_64:qemu-system-x86
    qemu-img:qemu-utils
    bwrap:bubblewrap
    passt:passt
    mmdebstrap:mmdebstrap
    newuidmap:uidmap
    mkfs.ext4:e2fsprogs
    zstd:zstd
)
needed_files=(
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)

say() { printf '%s\n' "$*"; }
fail() {
    printf '\n%s: %s\n' "${0##*/}" "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}

# step TEXT COMMAND...: one line of progress; the command's output is shown only when it fails.
step() {
    local text=$1 log started=$SECONDS
    shift
    log=$(mktemp)
    printf '  %-62s ' "$text"
    if "$@" > "$log" 2>&1 < /dev/null; then
        printf 'done in %ds\n' $((SECONDS - started))
        rm -f "$log"
    else
        printf 'FAILED\n' # its last lines say why
        tail -n 25 "$log" | sed 's/^/    | /' >&2
        rm -f "$log"
        return 1
    fi
}

missing_packages() {
    local row
    for row in "${needed_programs[@]}"; do
        command -v "${row%%:*}" > /dev/null || echo "${row#*:}"
    done
    for row in "${needed_files[@]}"; do
        [ -e "${row%%:*}" ] || echo "${row#*:}"
    done
    [ -x /usr/bin/python3 ] || echo python3
    compgen -G '/usr/lib/python3*/ensurepip/__main__.py' > /dev/null || echo python3-venv
    printf '%s\n' "$@" # whatever else the caller needs
}

# as_root COMMAND...: only packages (and, in ./test, the test user) are made this way.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo -- "$@"
    else
        fail "root is needed for: $*" "become root and run that command, then start me again"
    fi
}

ensure_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@" | sed '/^$/d' | sort -u)
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get > /dev/null || fail "these Debian packages (or your system's equal) are missing: ${missing[*]}" \
        "Cloison installs them by itself on Debian 12 and Ubuntu 24.04 or newer"
    if [ "$(id -u)" != 0 ]; then
        say "  Packages to install: ${missing[*]}"
        command -v sudo > /dev/null || fail "packages are missing and there is no sudo" \
            "as root: apt-get install --no-install-recommends ${missing[*]}"
        sudo -n true 2> /dev/null || sudo -v || fail "sudo is needed to install packages, and for nothing else" \
            "as root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends
        -o DPkg::Lock::Timeout=300 "${missing[@]}")
    # The package lists may be absent or older than the archive: then, and only then, fetch them.
    if ! compgen -G '/var/lib/apt/lists/*Packages*' > /dev/null \
        || ! step "installing ${#missing[@]} packages" as_root "${install[@]}"; then
        step 'fetching package lists' as_root apt-get update -o DPkg::Lock::Timeout=300 \
            || fail 'apt-get update failed' 'check the network and /etc/apt/sources.list'
        step "installing ${#missing[@]} packages" as_root "${install[@]}" \
            || fail "could not install: ${missing[*]}" 'the lines above are apt-get saying why'
    fi
}

# Templates are built from the package sources that the host itself uses, so the host must have read their lists.
ensure_package_lists() {
    command -v apt-get > /dev/null || return 0
    ! compgen -G '/var/lib/apt/lists/*Packages*' > /dev/null || return 0
    [ "$(id -u)" = 0 ] || sudo -v || fail 'sudo is needed to read the package lists' 'as root: apt-get update'
    step 'fetching package lists' as_root apt-get update -o DPkg::Lock::Timeout=300 \
        || fail 'apt-get update failed' 'check the network and /etc/apt/sources.list'
}

# ensure_venv DIR LOCK: DIR/.venv with exactly what LOCK names, and Cloison itself. Uses the system's Python: others
# (pyenv's, conda's) may live where other users of this machine cannot read.
ensure_venv() {
    local dir=$1 lock=$2 stamp wanted
    python=$dir/.venv/bin/python
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || fail "$(/usr/bin/python3 --version) is too old" 'Cloison needs Python 3.11: Debian 12, Ubuntu 24.04 or newer'
    stamp=$dir/.venv/.cloison-$lock
    wanted=$(cd "$dir" && /usr/bin/python3 --version && pwd && cat "$lock" pyproject.toml | sha256sum)
    [ -x "$python" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ] && return 0
    if ! "$python" -c 'import pip' 2> /dev/null; then
        rm -rf "$dir/.venv"
        step 'making the virtual environment' /usr/bin/python3 -m venv "$dir/.venv" || fail 'python3 -m venv failed'
    fi
    step "installing Python libraries ($lock)" "$python" -m pip install -qq --require-hashes -r "$dir/$lock" \
        || fail 'pip could not install the locked libraries' "check the network; try: $python -m pip install --require-hashes -r $lock"
    step 'installing Cloison into it' "$python" -m pip install -qq --no-deps --no-build-isolation --no-index \
        --editable "$dir" || fail 'Cloison itself could not be installed'
    printf '%s\n' "$wanted" > "$stamp"
}
