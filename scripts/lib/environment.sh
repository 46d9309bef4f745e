# Makes .venv (once, and again when what it is made from changes). Sourced by the scripts beside this folder.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"

find_python() {
    local name
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        [ -n "$name" ] || continue
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v -- "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer was found; install one, or name it with PYTHON=/path/to/python3" >&2
    return 1
}

make_environment() { # [plain]: what Aegis itself needs, 100 MB; else all that its tests need too, 700 MB
    local python stamp wanted what=.[dev]
    stamp=.venv/made-from
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    case "$(cat "$stamp" 2>/dev/null)" in
        "$wanted") return ;;
        "$wanted plain") [ "${1:-}" != plain ] || return 0 ;;
    esac
    if [ "${1:-}" = plain ]; then
        what=. wanted="$wanted plain"
    fi
    python=$(find_python)
    echo "making .venv with $python: a minute on a usual line, once" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt --editable "$what" >&2
    .venv/bin/python -m compileall -q aegis_shim aegis_daemon >/dev/null
    echo "$wanted" >"$stamp"
}
