#!/bin/sh
# apt_install.sh "PROGRAM:PACKAGE ..." ["LIBRARY ..."]: install the Debian packages that are missing.
set -eu
missing=""
for pair in $1; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
for package in ${2:-}; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed:$missing (Debian names); install them and try again" >&2
    exit 3
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
echo "installing$missing" >&2
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
