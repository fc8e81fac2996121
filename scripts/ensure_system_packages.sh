#!/bin/sh
# Installs the Debian packages that some tests use: a PostgreSQL server and a Chromium. Does nothing when they are
# there. Without the rights to install them it says so and goes on: those tests then give their reason.
set -u

wanted=""
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || wanted="$wanted postgresql"
command -v chromium >/dev/null 2>&1 || wanted="$wanted chromium"
[ -n "$wanted" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root="missing"; fi
fi
if [ "$as_root" = missing ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed:$wanted (needs root and apt-get); the tests that use them will say so" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q >/dev/null && $as_root apt-get install -y -q --no-install-recommends $wanted >/dev/null ||
    echo "could not install:$wanted; the tests that use them will say so" >&2
exit 0
