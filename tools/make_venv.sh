#!/bin/sh
# make_venv.sh PYTHON FOLDER REQUIREMENT: a virtual environment with edgetqs installed in it, editable.
set -eu
python=$1 folder=$2 requirement=$3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "edgetqs needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if [ ! -x "$folder/bin/python" ] && ! "$python" -m venv "$folder" >/dev/null 2>&1; then
    rm -rf "$folder"
    "$(dirname "$0")/apt_install.sh" "" "python3-venv"
    "$python" -m venv "$folder"
fi
"$folder/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
"$folder/bin/pip" install --quiet --disable-pip-version-check --editable "$requirement"
