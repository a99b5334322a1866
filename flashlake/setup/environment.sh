#!/bin/sh
# Makes the virtual environment from requirements/lock.txt, once per content of the lock. Needs Python 3.11 and nothing else.
# The lock is complete, so nothing is resolved again (--no-deps). The stamp is a copy of the lock, written last: an interrupted
# set-up is taken up again, an unchanged one needs no network.
set -eu
python=${PYTHON:-python3.11}
venv=${VENV:-.venv}
lock=requirements/lock.txt
stamp=$venv/lock.installed

say() { printf '%s\n' "setup: $1" >&2; }
refuse() { say "$1"; exit 1; }

if [ ! -x "$venv/bin/python" ]; then
  command -v "$python" >/dev/null 2>&1 ||
    refuse "$python was not found on the PATH; install Python 3.11 (on Debian and Ubuntu the packages python3.11 and python3.11-venv), or name one: make setup PYTHON=/path/to/python3.11"
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    refuse "$python is not a working Python 3.11, and the lock is made for 3.11; name one: make setup PYTHON=/path/to/python3.11"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    refuse "$python cannot make virtual environments (its modules venv or ensurepip are missing); on Debian and Ubuntu install the package python3.11-venv"
  say "making the virtual environment $venv"
  "$python" -m venv --clear "$venv" >&2 || refuse "$python -m venv $venv failed, see above; remove $venv and repeat"
fi

if ! cmp -s "$lock" "$stamp"; then
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --upgrade >/dev/null ||
    refuse "$venv has no pip and Python has no ensurepip to make one; remove $venv, install python3.11-venv, and repeat"
  say "installing the locked packages (once; about 1.4 GB, one to three minutes)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$lock" >&2 ||
    refuse "the locked packages could not be installed, see above; with the network restored, repeat the command: it goes on where it stopped"
  cp "$lock" "$stamp"
fi
