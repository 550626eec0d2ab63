"""The native part of the package: kernels/cpu/native.so, where a C++ compiler is at hand.

All else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_SOURCE = Path(__file__).resolve().parent / "kernels" / "cpu" / "build.py"
_spec = importlib.util.spec_from_file_location("native_build", _SOURCE)
assert _spec is not None and _spec.loader is not None
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class Build(build_ext):
    """Calls kernels/cpu/build.py; without a compiler the package has torch's ops alone."""

    def build_extension(self, ext: Extension) -> None:
        """Build into the wheel, or into the tree for an editable install."""
        try:
            native.build(Path(self.get_ext_fullpath(ext.name)).parent)
        except native.BuildError as error:
            print(f"shoal: no native CPU ops, torch's serve: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        """It is loaded by its path and knows nothing of Python's version."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class Wheel(bdist_wheel):
    """A wheel for a platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """As of a pure wheel, but for the platform."""
        return ("py3", "none", super().get_tag()[2])


try:
    native.check()
    extensions = [Extension("shoal.kernels.cpu.native", sources=[], optional=True)]
except native.BuildError as absence:
    print(f"shoal: no native CPU ops, torch's serve: {absence}", file=sys.stderr)
    extensions = []

# The root is a package: its name keeps this file out of it, whoever runs it.
setup(
    script_name="setup.py",
    ext_modules=extensions,
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
