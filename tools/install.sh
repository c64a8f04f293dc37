#!/usr/bin/env bash
# Makes the virtual environment .venv with everything that the demo and the tests need, and sees to a GL library.
# Called by make. Says in plain words what is missing, and installs it where it may (as root, with apt-get).
# PYTHON=... chooses the interpreter, EXTRAS=... what is installed ("demo,dev,ogbench,metaworld,robots").
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${EXTRAS:-demo,dev,ogbench,metaworld,robots}
bin=.venv/bin

fail() {
    { echo && printf '%s\n' "$@"; } >&2
    exit 1
}

# As root on a machine with apt, installs packages and says so; otherwise fails.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing system packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

is_312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3 python}; do
        if is_312 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    if ! python=$(find_python); then
        if command -v uv >/dev/null && uv venv --quiet --python "${PYTHON:-3.12}" .venv; then
            return
        fi
        if [ -z "${PYTHON:-}" ] && apt_install python3.12 python3.12-venv >/dev/null 2>&1 && python=$(find_python); then
            :
        elif command -v pyenv >/dev/null; then
            fail "Python 3.12 is missing. Install it, then run make again:" "    pyenv install 3.12"
        elif apt-cache show python3.12 >/dev/null 2>&1; then
            fail "Python 3.12 is missing. Install it, then run make again:" \
                "    sudo apt-get install -y python3.12 python3.12-venv"
        else
            fail "Python 3.12 is missing${PYTHON:+ (PYTHON=$PYTHON)}, and this system has no package of that name." \
                "Install uv, which brings its own Python, then run make again:" \
                "    curl -LsSf https://astral.sh/uv/install.sh | sh"
        fi
    fi
    echo "making .venv with $("$python" --version) ($python)"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        apt_install python3.12-venv ||
            fail "This Python cannot make virtual environments. Install the missing part, then run make again:" \
                "    sudo apt-get install -y python3.12-venv"
    fi
    "$python" -m venv --clear .venv
}

# Draws nothing, but makes a context: a library without a driver behind it loads and then fails.
gl_works() {
    local gl
    for gl in osmesa egl; do
        if MUJOCO_GL=$gl PYOPENGL_PLATFORM=$gl $bin/python -c \
            'import mujoco; mujoco.GLContext(16, 16).make_current()' >/dev/null 2>&1; then
            return 0
        fi
    done
    return 1
}

# A kill in the middle may have left an environment without pip.
has_installer() { [ -x $bin/uv ] || $bin/python -c 'import pip' 2>/dev/null || command -v uv >/dev/null; }

if ! [ -x $bin/python ] || ! is_312 $bin/python || ! has_installer; then
    make_venv
fi
if ! [ -x $bin/uv ]; then
    # A venv that uv made has no pip, but then there is a uv.
    if $bin/python -c 'import pip' 2>/dev/null; then
        $bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
    else
        uv pip install --quiet --python $bin/python -c constraints.txt uv
    fi
fi

echo "installing deas_vla[$extras] into .venv (about 7 GB with torch's GPU libraries; half a minute on a fast line)"
$bin/uv pip install --python $bin/python --override overrides.txt -c constraints.txt -e ".[$extras]" ||
    fail "The installation failed: see the message above. Nothing else was changed; run make again to go on."

# LeRobot finds policies and environments by the names of distributions. These hold little more than their names; what
# they need came with the extras.
if [[ ",$extras," == *,demo,* || ",$extras," == *,lerobot,* ]]; then
    for plugin in plugins/*/; do
        [[ $plugin == *metaworld* && ",$extras," != *,metaworld,* ]] && continue
        $bin/uv pip install --quiet --python $bin/python --no-deps -e "$plugin" ||
            fail "The installation of $plugin failed: see the message above; run make again to go on."
    done
fi

if [[ ",$extras," == *,demo,* || ",$extras," == *,sim,* ]] && ! gl_works; then
    packages="libosmesa6 libegl1 libgl1-mesa-dri"
    # Newer Debian and Ubuntu have no OSMesa any more; EGL does as well.
    apt_install $packages 2>/dev/null || apt_install libegl1 libgl1-mesa-dri || true
    if ! gl_works; then
        if command -v dnf >/dev/null; then
            command="sudo dnf install -y mesa-libOSMesa mesa-libEGL mesa-dri-drivers"
        elif command -v pacman >/dev/null; then
            command="sudo pacman -S --needed mesa"
        else
            command="sudo apt-get install -y $packages"
        fi
        fail "No GL library to draw camera images with. Install one, then run make again:" "    $command"
    fi
fi

# LeRobot decodes videos with torchcodec, which loads the system's FFmpeg. Data sets of images do without.
has_ffmpeg() { $bin/python -c 'import sys; from ctypes.util import find_library; sys.exit(not find_library("avcodec"))'; }

if [[ ",$extras," == *,demo,* || ",$extras," == *,lerobot,* ]] && ! has_ffmpeg && ! apt_install ffmpeg; then
    echo "note: data sets with videos cannot be read without FFmpeg: sudo apt-get install -y ffmpeg"
fi
