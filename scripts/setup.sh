#!/bin/sh
# Makes `.venv` and installs pullback into it: `sh scripts/setup.sh EXTRA`, where EXTRA is "train" or "dev".
#
# It needs Python 3.11 or later (PYTHON=… names one) and pip's usual way to packages.  Where pip knows a CPU build of
# PyTorch, as through PIP_EXTRA_INDEX_URL, it takes that one.  The second run finds everything in place and does nothing.
set -eu

cd "$(dirname "$0")/.."
extra=${1:-dev}

usable() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3 python; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "pullback needs Python 3.11 or later, and none was found: install it, or name it with PYTHON=/path/to/python" >&2
    exit 1
}

# What decides whether an installation is still the right one.
wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
stamp=.venv/installed-$extra

# The development tools include what the demonstration needs.
for done in "$stamp" .venv/installed-dev; do
    if [ -x .venv/bin/python ] && [ -f "$done" ] && [ "$(cat "$done")" = "$wanted" ]; then
        exit 0
    fi
done

if ! usable .venv/bin/python; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)" >&2
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "$python could not make a virtual environment: on Debian and Ubuntu, install the package python3-venv" >&2
        exit 1
    fi
fi

echo "installing pullback[$extra] into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" --constraint constraints.txt
echo "$wanted" >"$stamp"
