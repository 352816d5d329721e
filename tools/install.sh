#!/bin/sh
# Make .venv with everything needed to run, test and develop Suanli. Run by `make install`; may be run again at any time.
#
#   PYTHON=python3.12   the interpreter to use (default: the first of 3.11 or newer that is found)
#   TORCH_INDEX=URL     a package index to take PyTorch from, such as PyTorch's own one for CPU builds
set -eu
cd "$(dirname "$0")/.."

usable() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "install: PYTHON=$PYTHON is missing or older than 3.11" >&2
    else
        echo "install: Suanli needs Python 3.11 or newer, and none was found (tried python3.11, 3.12, 3.13, python3)." >&2
        echo "install: install one, or name it: make install PYTHON=/path/to/python3.12" >&2
    fi
    return 1
}

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    echo "install: making .venv with $("$python" --version)"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet .venv
    else
        # Debian and its kin ship venv and ensurepip apart from Python.
        echo "install: $python has no ensurepip: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2
        exit 1
    fi
fi

pip() {
    .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"
}

# The pip that comes with an older Python can fail to find the set of versions that a newer one finds in a minute.
pip install --quiet --upgrade 'pip>=25.1'

# PyTorch first and by exact version: a CPU build (2.13.0+cpu), where pip can see one, outranks the plain 2.13.0, which on
# Linux brings gigabytes of CUDA libraries. The range of the `torch` extra is then already met and nothing replaces it.
echo "install: PyTorch"
pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} 'torch==2.13.0'
echo "install: Suanli and its development tools (a few minutes the first time)"
pip install --quiet --editable '.[dev,algorithms,torch,postgres,reports,s3,kubernetes]'

echo "install: compiling the planner's inner loops"
.venv/bin/python -m scheduler.planning.warming
touch .venv/.installed
echo "install: done; the command is .venv/bin/suanli"
