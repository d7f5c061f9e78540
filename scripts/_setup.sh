# Sourced by the other scripts: finds Python and uv, and brings an environment up to date. Talks to stderr only.
# Call: setup ENV_DIR STAMP_NAME [uv sync options…]   Says nothing and takes milliseconds when nothing changed.

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in "${STIGMER_PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  say "stigmer needs Python 3.11 or newer; this machine's is $(python3 --version 2>&1 || echo missing)."
  say "hint: install Python 3.11+, or name one: STIGMER_PYTHON=/path/to/python3.12 $0"
  return 2
}

# uv comes from the package index: the one on PATH, else one of our own in the cache.
find_uv() {
  local python=$1 home="${XDG_CACHE_HOME:-$HOME/.cache}/stigmer/uv"
  if command -v uv >/dev/null 2>&1; then command -v uv; return; fi
  if [ -x "$home/bin/uv" ]; then echo "$home/bin/uv"; return; fi
  say "Installing uv (once) …"
  mkdir -p "$home"
  if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --upgrade --target "$home" uv >&2
  elif "$python" -m venv "$home/venv" >/dev/null 2>&1; then
    "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv >&2
    mkdir -p "$home/bin" && ln -sf "$home/venv/bin/uv" "$home/bin/uv"
  else
    say "This Python has neither pip nor venv, so uv cannot be installed."
    say "hint: install uv yourself, or your system's python3-pip package"
    return 2
  fi
  echo "$home/bin/uv"
}

setup() {
  local env_dir=$1 stamp=$1/.stamp-$2 want python uv
  shift 2
  want=$(cat uv.lock pyproject.toml packages/*/pyproject.toml | cksum)
  UV=""
  if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$want" ] && [ -x "$env_dir/bin/python" ]; then
    UV=$(tail -n 1 "$stamp")
    export UV
    return 0
  fi
  python=$(find_python) || return
  uv=$(find_uv "$python") || return
  say "Setting up $env_dir with $("$python" --version 2>&1) (once; a minute or so) …"
  # On a terminal uv shows its progress; elsewhere its list of packages is only noise.
  [ -t 2 ] || set -- --quiet "$@"
  UV_PROJECT_ENVIRONMENT=$env_dir UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV="" \
    "$uv" sync --frozen --compile-bytecode --python "$python" "$@" >&2 || return
  "$env_dir/bin/python" -m compileall -q packages/*/src >&2 || true
  printf '%s\n%s\n' "$want" "$uv" > "$stamp"
  UV=$uv
  export UV
}
