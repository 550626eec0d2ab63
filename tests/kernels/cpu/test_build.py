"""What compilers that know less make of the sources, and what a library of several sets holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from shoal.kernels.cpu import bindings, build

CXX = shutil.which("c++")
pytestmark = pytest.mark.skipif(CXX is None, reason="there is no c++")

COMPILER = """\
#!/bin/sh
# Does not optimise, keeps names, and refuses some flags as an old compiler does. Its last call,
# which links, is written down.
for word; do
    shift
    case $word in
        {refused}) echo "cxx: error: unrecognized option $word" >&2; exit 1 ;;
        -O3 | -s) ;;
        *) set -- "$@" "$word" ;;
    esac
done
echo "$@" > "$0.last"
exec {real} "$@"
"""


def compiler(path: Path, refused: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(COMPILER.format(refused=refused, real=CXX))
    path.chmod(0o755)
    return path


def test_sets_that_a_compiler_refuses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    old = compiler(tmp_path / "bin" / "old", "-mamx* | -mavx512bf16")
    monkeypatch.setenv("CXX", f"env LC_ALL=C {old}")
    made = bindings.opened(build.build(tmp_path))
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"shoal: native CPU ops without {name}: cxx: error: unrecognized option -mavx512bf16"
        for name in ("avx512bf16", "amx")
    ]
    whole = bindings.loaded()
    if made is None or whole is None:
        pytest.skip("this processor has no AVX2")
    for name in (b"avx2", b"avx512", b"avx512bf16", b"amx"):
        left_out = name in (b"avx512bf16", b"amx")
        before = whole.shoal_instructions()
        assert made.shoal_choose(name) == (whole.shoal_choose(name) and not left_out)
        whole.shoal_choose(before)
    best = whole.shoal_instructions().decode()
    told = bindings.left_out()
    monkeypatch.setattr(bindings, "loaded", lambda: made)
    if best in ("avx512bf16", "amx"):
        told = f"{best} was left out when they were built: "
    assert (bindings.left_out() or "").startswith(told or "")
    assert bool(bindings.left_out()) == bool(told)


def test_another_compiler_takes_over_from_one_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = compiler(tmp_path / "bin" / "broken", "-mavx2")
    sound = compiler(tmp_path / "bin" / "c++", "-nothing")
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    made = build.build(tmp_path)
    first, *rest = capfd.readouterr().err.splitlines()
    assert first == f"shoal: native CPU ops not by {broken}: cxx: error: unrecognized option -mavx2"
    assert not rest, "the machine's own compiler is too old to test what follows"
    _holds_each_set_apart(made)
    # Of templates that several have, the first copy is kept.
    linked = Path(f"{sound}.last").read_text().split()
    objects = [Path(word).stem for word in linked if word.endswith(".o")]
    assert objects == [*build.PLAIN, *build.FLAGS]


NEWER = re.compile(r"zmm|%k[0-7]|[xy]mm(1[6-9]|2\d|3[01])|tile|tdp")
"""What machines without AVX-512 cannot read."""


def _holds_each_set_apart(made: Path) -> None:
    """No machine comes upon instructions that it lacks; tiles' machines use none that are slow."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, shared = "", 0
    for line in done.stdout.splitlines():
        code = re.split("[#<]", line)[0]
        if head := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            name = head[1]
            shared += not re.search("avx2|avx512|amx", name)
        elif not re.search("avx512|amx", name):
            assert not NEWER.search(code), f"{name}: {line}"
        elif "3amx" in name:
            assert "vdpbf16ps" not in code, f"{name}: {line}"
    assert shared > 20


def test_sets_rise() -> None:
    """Whoever runs one runs those before it: the linker keeps their copies of shared templates."""
    for lower, higher in pairwise(build.FLAGS.values()):
        assert set(lower) < set(higher)


def test_a_command_that_no_shell_takes_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "c++ -DNAME='")
    with pytest.raises(build.BuildError, match=r"CXX .*No closing quotation.*: c\+\+ -DNAME='"):
        build.compilers()


def test_a_compiler_of_several_names_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler(tmp_path / "g++-12", "-nothing")
    for name in ("c++", "g++"):
        (tmp_path / name).symlink_to("g++-12")
    monkeypatch.delenv("CXX", raising=False)
    assert build.compilers() == [["c++"]]
    monkeypatch.setenv("CXX", "g++ -m64")
    assert build.compilers() == [["g++", "-m64"], ["c++"]]
    compiler(tmp_path / "ccache", "-nothing")
    for name in ("c++", "g++", "clang++"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to("ccache")
    monkeypatch.delenv("CXX")
    assert build.compilers() == [["c++"], ["g++"], ["clang++"]]


def test_of_no_compiler_that_can_each_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c++", "g++", "clang++"):
        compiler(tmp_path / "bin" / name, "-mavx2")
    wrapper = compiler(tmp_path / "wrapper", "-nothing")
    wrapper.write_text("c++ $*\n")  # without #! only a shell runs it
    monkeypatch.setenv("CXX", str(wrapper))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(build.BuildError) as failure:
        build.build(tmp_path)
    assert str(failure.value).count("unrecognized option -mavx2") == 3
    assert "Exec format error" in str(failure.value)
    assert not (tmp_path / build.NAME).exists()
